#!/usr/bin/env bash
# kopf 1.45.2 does not start where its user id has no name: as a user id that /etc/passwd does not know, which is
# what OpenShift gives every pod (restricted-v2), `kopf run` ends with KeyError from getpass.getuser(), before any
# handler and before it asks for a cluster. The name is only part of an identity for peering, which --standalone
# switches off. One would expect it to start: its documentation asks for no such entry. USER, LOGNAME or POD_ID in
# the environment keeps it from asking. Needs root, to become such a user, and a Python that any user may run.
#
# Output seen:
#   without a name: KeyError: 'getpwuid(): uid not found: 1000700000'
#   with USER set: it starts
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
/usr/bin/python3 -m pip install --quiet --root-user-action=ignore --target "$folder/packages" kopf==1.45.2
chmod -R go+rX "$folder"
cat > "$folder/handlers.py" <<'PYTHON'
import kopf


@kopf.on.startup()
def started(**_):
    raise kopf.PermanentError("it starts")  # nothing more is asked of it: there is no cluster
PYTHON

run() {  # as a user without a name; further variables as arguments
  setpriv --reuid 1000700000 --regid 0 --clear-groups \
    env -i PATH="$PATH" PYTHONPATH="$folder/packages" PYTHONDONTWRITEBYTECODE=1 "$@" \
    timeout 60 /usr/bin/python3 -m kopf run --standalone --all-namespaces "$folder/handlers.py" 2>&1 || true
}

without=$(run | grep -m 1 -o "KeyError: .*")
echo "without a name: $without"
with=$(run USER=anybody | grep -m 1 -o "it starts")
echo "with USER set: $with"
test "$without" = "KeyError: 'getpwuid(): uid not found: 1000700000'"
