# One static program: the sandbox of every pod, and the init container of a PyTorchJob's workers.
# Context: the folder of Debian's busybox-static.
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN ["/bin/mkdir", "-m", "1777", "/tmp"]
ENV PATH=/bin
CMD ["/bin/sleep", "2147483647"]
