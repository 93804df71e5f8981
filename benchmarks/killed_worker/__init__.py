"""What happens when one worker of a run is killed: the others end, and the run goes on from its last checkpoint."""
