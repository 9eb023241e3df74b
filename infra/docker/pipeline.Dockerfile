# The image of data engineers and auditors: Ray head, workers and submitted jobs run it.
#   docker build -f infra/docker/pipeline.Dockerfile -t corpus-pipeline .
FROM python:3.11-slim-bookworm

# libgl/glib: what opencv loads. wget: what KubeRay asks a pod's health with. No compiler: nothing of the pipeline compiles an extension.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY infra/constraints.txt infra/constraints.txt
COPY pipeline pipeline
COPY trainer trainer
COPY evaluation evaluation
# An auditor's overlap job runs here too; torch only for the scores, so that its build is the one of the index that is used.
RUN pip install --no-cache-dir --constraint infra/constraints.txt '.[pipeline,evaluation]'

# Nothing from the web is handled as root.
RUN useradd --create-home --uid 1000 app && chown app /app
USER app

CMD ["python", "-m", "pipeline", "--help"]
