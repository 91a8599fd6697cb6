"""What vLLM reads from the environment when it is imported: set it before `actors.text_engine` is."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's modules must live in this process to be borrowed
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
CPU_ENVIRONMENT = {
    "TORCH_COMPILE_DISABLE": "1",  # enforce_eager does not stop the sampler's compilation
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several actors share few cores
    "OMP_NUM_THREADS": "1",  # tiny models: more threads are slower
}
BATCH_INVARIANT = {"VLLM_BATCH_INVARIANT": "1"}
"""On a GPU: kernels whose sums do not depend on how many sequences are decoded beside."""
