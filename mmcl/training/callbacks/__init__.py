"""Work beside the steps of a run, of which the loop knows no more than when it is done."""
