"""What only a GPU can show: `make test-gpu`. PERA_TEST_GPU_DEVICE=cpu runs what a CPU has a counterpart of there."""
