# Context: the folder that hack/cluster built training-operator into.
FROM scratch
COPY training-operator.v1 /manager
ENTRYPOINT ["/manager"]
