"""What methods are composed of: momentum copies, queues, masked language modelling."""
