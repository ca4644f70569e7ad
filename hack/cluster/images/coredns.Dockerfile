# Context: the folder that hack/cluster built coredns into.
FROM scratch
COPY coredns /coredns
ENTRYPOINT ["/coredns"]
