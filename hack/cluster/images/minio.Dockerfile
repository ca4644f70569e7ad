# Context: the folder that hack/cluster built minio into.
FROM scratch
COPY minio /minio
ENTRYPOINT ["/minio"]
