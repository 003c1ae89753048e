#!/bin/sh
# Installs medmoe and its model from this folder into a new one, without any network:
#   sh install.sh /opt/medmoe
# PYTHON=/path/to/python@PYTHON@ names the Python to take. Research use only, not a medical device.
set -eu
umask 022
export LC_ALL=C

fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 2
}

[ $# -eq 1 ] || fail 'give one new folder to install into: sh install.sh /opt/medmoe'
case $1 in
    /*) target=$1 ;;
    *) target=$PWD/$1 ;;
esac
cd "$(dirname "$0")"

# --- what is here is what was packed
again='copy the bundle again and unpack it into an empty folder'
odd=$(find . ! -type f ! -type d | head -n 1)
[ -z "$odd" ] || fail "$odd is no plain file; $again"
sums=$(sha256sum -c SHA256SUMS 2> /dev/null || :)
bad=$(printf '%s\n' "$sums" | sed -n '/: OK$/!{p;q;}')
[ -z "$bad" ] || fail "$bad (SHA-256); $again"
good=$(printf '%s\n' "$sums" | grep -c ': OK$' || :)
there=$(find . -type f ! -path ./SHA256SUMS | wc -l)
[ "$good" -gt 0 ] && [ "$good" -eq "$there" ] ||
    fail "$there files are here, and SHA256SUMS has $good of them; $again"

# --- the machine fits
[ "$(uname -s) $(uname -m)" = 'Linux @MACHINE@' ] ||
    fail "is for Linux on @MACHINE@, and this is $(uname -s) on $(uname -m); make a bundle on such a machine"
name=$1
if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python@PYTHON@ python3; fi
python=
for candidate; do
    if "$candidate" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "@PYTHON@")' 2> /dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] ||
    fail "needs Python @PYTHON@, which its wheels were built for, and $* is not; name it: PYTHON=/path/to/python@PYTHON@ sh install.sh $name"
"$python" -c 'import ensurepip, venv' 2> /dev/null ||
    fail "$python has no venv; install the system's package python@PYTHON@-venv"
libc=$("$python" -c 'import platform; print(*platform.libc_ver())')
"$python" -c 'import sys
kind, version = sys.argv[1].split()
sys.exit(kind != "glibc" or [*map(int, version.split("."))] < [*map(int, "@GLIBC@".split("."))])' "$libc" 2> /dev/null ||
    fail "needs glibc @GLIBC@ or newer, and this is ${libc:-another libc}; take a newer Linux"

# --- the place is new, and large enough
mkdir -p "$target" 2> /dev/null || fail "cannot make $target; give another folder, or be its owner"
[ -z "$(ls -A "$target")" ] || fail "$target is not empty; give a new folder: an update goes beside the old one"
finished=
tidy() {
    code=$?
    trap - EXIT
    [ -n "$finished" ] || rm -rf "$target" 2> /dev/null || :
    exit "$code"
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM
free=$(df -Pk "$target" | awk 'NR == 2 { print $4 }')
[ "$free" -ge @KIB@ ] ||
    fail "needs $((@KIB@ / 1024)) MiB, and $target has $((free / 1024)) free; free some space, or give another folder"

# --- nothing is fetched, nothing is resolved, every wheel has its hash
said=$("$python" -m venv "$target/venv" 2>&1) || fail "no venv can be made: $(printf %s "$said" | tail -n 1)"
said=$("$target/venv/bin/python" -m pip --isolated --disable-pip-version-check install --quiet --no-index \
    --no-deps --no-cache-dir --require-hashes --find-links wheels -r requirements.lock 2>&1) ||
    fail "pip has failed: $(printf %s "$said" | grep . | tail -n 1)"
cp -R model docs licences README.md SHA256SUMS requirements.lock sbom.cdx.json "$target"
cat > "$target/.medmoe" << END
#!/bin/sh
# medmoe, which asks no network for anything.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
exec "$target/venv/bin/medmoe" "\$@"
END
chmod 755 "$target/.medmoe"
"$target/.medmoe" --version > /dev/null || fail 'medmoe does not start; the lines above say why'
sync
mv "$target/.medmoe" "$target/medmoe" # stands there only once all else does
finished=yes
printf 'installed: %s\n' "$target"
printf 'try it:    %s/medmoe serve %s/model\n' "$target" "$target"
