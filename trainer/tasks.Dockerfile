# The trainer with lm-evaluation-harness, for the one stage that runs spec.evaluate.tasks. On top of the trainer's image:
#   docker build -f trainer/tasks.Dockerfile --build-arg BASE=REGISTRY/trainer:TAG -t REGISTRY/trainer-tasks:TAG .
# Then spec.pods.evaluate.image: REGISTRY/trainer-tasks:TAG. All other stages go on without these 300 MB.
ARG BASE=trenchcoat-trainer
FROM ${BASE}
USER 0:0
COPY requirements/bootstrap.txt requirements/tasks.txt /requirements/
RUN export PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
 && python3 -m venv /tmp/tools \
 && /tmp/tools/bin/pip install --no-cache-dir --require-hashes -r /requirements/bootstrap.txt \
 && UV_NO_CACHE=1 /tmp/tools/bin/uv pip install --python /opt/venv/bin/python --compile-bytecode --no-deps \
      --require-hashes -r /requirements/tasks.txt \
 && rm -rf /tmp/tools
USER 65532:65532
