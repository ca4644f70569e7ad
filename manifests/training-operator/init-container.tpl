# What a PyTorchJob's worker waits in until its master has an address, in place of the training operator's own
# template: that one has no securityContext, and a namespace that enforces the restricted Pod Security Standard refuses
# the whole pod. The user and the seccomp profile are the pod's.
# It asks for the full name: Debian's busybox asks in every search domain, and fails if one does not know the name.
# The training operator escapes angle brackets. Without the trap the shell, as the first process, would ignore SIGTERM, and
# a worker that is told to end would keep its GPU until its grace period is over.
- name: init-pytorch
  image: {{.InitContainerImage}}
  imagePullPolicy: IfNotPresent
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  resources:
    limits: {cpu: 100m, memory: 20Mi}
    requests: {cpu: 10m, memory: 10Mi}
  command:
    - sh
    - -c
    - |
      trap 'exit 143' TERM
      domain=$(awk '/^search/ {print $2}' /etc/resolv.conf)
      for i in $(seq {{.MaxTries}}); do
        nslookup "{{.MasterAddr}}.$domain." && exit
        echo waiting for master
        sleep 2
      done
      exit 1
