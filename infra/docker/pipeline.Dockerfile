# The image of data engineers and auditors: Ray head, workers and submitted jobs run it.
#   docker build -f infra/docker/pipeline.Dockerfile -t corpus-pipeline .
FROM python:3.11-slim-bookworm

# libgl/glib: what opencv loads. wget: what KubeRay asks a pod's health with. rsync: Ray's cluster launcher copies files into the running
# container with it (`rsync -e 'docker exec -i'`); with ssh the head reaches the workers that it starts. No compiler: nothing of the pipeline
# compiles an extension.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 wget rsync openssh-client \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY infra/constraints.txt infra/constraints.txt
COPY pipeline pipeline
COPY trainer trainer
COPY evaluation evaluation
# An auditor's overlap job runs here too; torch only for the scores, so that its build is the one of the index that is used.
RUN pip install --no-cache-dir --constraint infra/constraints.txt '.[pipeline,evaluation]'

# Nothing from the web is handled as root. ~/.ray is made here, so that it is app's own where the launcher mounts a token into it; uid 1000
# is also that of `ubuntu` on AWS machines, which owns the mounted token.
RUN useradd --create-home --uid 1000 app && install -d -o app -g app /home/app/.ray && chown app /app
USER app

CMD ["python", "-m", "pipeline", "--help"]
