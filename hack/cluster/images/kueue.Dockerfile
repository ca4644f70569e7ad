# Context: the folder that hack/cluster built kueue into.
FROM scratch
COPY kueue /manager
# Its deployment insists on a user by number who is not root.
USER 65532:65532
ENTRYPOINT ["/manager"]
