# The image of ML engineers: one container a node, started by Kubernetes, by Ray or by the `deepspeed` launcher.
#   docker build -f infra/docker/trainer.Dockerfile -t corpus-trainer .
# The devel image because DeepSpeed looks for nvcc whenever it is imported, and without it warns of each of its CUDA kernels. The trainer uses
# none of these. What it compiles is for `model.compile` (torch.compile and Triton), which needs g++ and Python's headers, and its own loops by numba.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev python3-venv g++ pdsh openssh-client \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY infra/constraints.txt infra/constraints.txt
COPY pipeline pipeline
COPY trainer trainer
COPY evaluation evaluation
RUN pip install --no-cache-dir "$(grep '^torch==' infra/constraints.txt)" \
    && pip install --no-cache-dir --constraint infra/constraints.txt '.[trainer]'

# The image has a user `ubuntu` of this number; what Triton and numba compile is kept in its home.
USER 1000

CMD ["python", "-m", "trainer", "--config", "trainer/configs/vit_b_32.toml", "--check"]
