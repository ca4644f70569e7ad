#!/usr/bin/env bash
# buildah 1.28.2 (Debian 12: 1.28.2+ds1-3+deb12u1+b3)
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
apt-get download -q buildah=1.28.2+ds1-3+deb12u1+b3 libassuan0=2.5.5-5 libdevmapper1.02.1=2:1.02.185-2 \
  libgpg-error0=1.46-1 libgpgme11=1.18.0-3+deb12u1 libpcre2-8-0=10.42-1+deb12u2 libseccomp2=2.5.4-1+deb12u1 \
  libselinux1=3.4-1+b6 libsubid4=1:4.13+dfsg1-1+deb12u2 libudev1=252.39-1~deb12u2 > log
for package in *.deb; do dpkg -x "$package" tree; done
export LD_LIBRARY_PATH=$folder/tree/usr/lib/x86_64-linux-gnu:$folder/tree/lib/x86_64-linux-gnu
echo '{"default": [{"type": "insecureAcceptAnything"}]}' > policy.json

mkdir context
cat > context/Dockerfile <<'DOCKERFILE'
FROM scratch
ARG DEVICE=
ENV DEVICE=${DEVICE}
DOCKERFILE

buildah() {
  tree/usr/bin/buildah --root "$folder/root" --runroot "$folder/run" --storage-driver vfs "$@"
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
