# The trainer with the clients of spec.tracking. On top of the trainer's image:
#   docker build -f trainer/tracking.Dockerfile --build-arg BASE=REGISTRY/trainer:TAG -t REGISTRY/trainer-tracking:TAG .
# Then the chart's trainerImage, or spec.pods.STAGE.image: REGISTRY/trainer-tracking:TAG.
ARG BASE=trenchcoat-trainer
FROM ${BASE}
USER 0:0
COPY requirements/bootstrap.txt requirements/tracking.txt /requirements/
RUN export PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
 && python3 -m venv /tmp/tools \
 && /tmp/tools/bin/pip install --no-cache-dir --require-hashes -r /requirements/bootstrap.txt \
 && UV_NO_CACHE=1 /tmp/tools/bin/uv pip install --python /opt/venv/bin/python --compile-bytecode --no-deps \
      --require-hashes -r /requirements/tracking.txt \
 && rm -rf /tmp/tools
USER 65532:65532
