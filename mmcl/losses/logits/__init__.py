"""What losses with negatives share: similarities, candidates, and which of them are no negatives."""
