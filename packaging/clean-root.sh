# Clean Debian systems to build and test the package in, for build-deb, test-deb and test-container, which source this.
#
# The base system is made once, by debootstrap, and never written to afterwards: a root is a layer above it, in memory.
# Each script runs in namespaces of its own (unshare(1)), so that mounts and processes end with it, however it ends;
# nothing is left to undo. The mirror, and what apt must know to reach it, are those of this machine.

SUITE=${SUITE:-bookworm}
ROOTS=${ROOTS:-$PWD/.build/roots}

say() {
    printf '%s: %s\n' "${0##*/}" "$*"
}

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# isolate SCRIPT ARGUMENTS…: start the script anew, as root, where its mounts and processes are its own.
isolate() {
    [ -z "${CLEAN_ROOT_ISOLATED:-}" ] || return 0
    [ "$(id -u)" -eq 0 ] || fail "this makes a system of its own, for which it must be root"
    for program in debootstrap unshare; do
        command -v "$program" >/dev/null || fail "$program is missing; apt-get install debootstrap util-linux"
    done
    export CLEAN_ROOT_ISOLATED=yes
    exec unshare --mount --pid --fork --kill-child -- "$@"
}

# The archive that this machine has SUITE from, and Debian's own if it has it from none.
mirror() {
    found=$(apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -v suite="$SUITE" '$1 == suite && $2 == "main" { print $3; exit }')
    echo "${found:-http://deb.debian.org/debian}"
}

# make_base: debootstrap the base system unless it is there.
make_base() {
    base=$ROOTS/$SUITE
    [ ! -e "$base/.complete" ] || return 0
    say "making a minimal $SUITE in $base"
    rm -rf --one-file-system "$base"
    mkdir -p "$base"
    debootstrap --variant=minbase "$SUITE" "$base" "$(mirror)" >"$ROOTS/debootstrap.log" 2>&1 ||
        fail "debootstrap failed; see $ROOTS/debootstrap.log"
    touch "$base/.complete"
}

# new_root: a system as it is after its installation, in the folder $root. It replaces the last one.
new_root() {
    make_base
    # Scripts that run at the same time each have their own mount there.
    layers=$ROOTS/layers
    root=$layers/root
    mkdir -p "$layers"
    ! mountpoint -q "$layers" || umount -R -l "$layers"
    mount -t tmpfs tmpfs "$layers"
    mkdir "$layers/upper" "$layers/work" "$root"
    mount -t overlay overlay -o "lowerdir=$base,upperdir=$layers/upper,workdir=$layers/work" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    lend_network
    # No package may start a service here.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    # It is in memory: there is nothing to wait for.
    echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/clean-root"
    inside apt-get -q update >"$root/tmp/apt.log" 2>&1 || apt_failed "read the lists of packages"
}

# What this machine needs to reach its mirror and Python's index. It is in the root only, which is gone afterwards.
lend_network() {
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/" 2>/dev/null || true
    { apt-config dump Acquire::http; apt-config dump Acquire::https; } >"$root/etc/apt/apt.conf.d/99machine"
    if grep -qs "VERSION_CODENAME=$SUITE" /etc/os-release; then
        rm -f "$root/etc/apt/sources.list"
        cp -L /etc/apt/sources.list "$root/etc/apt/" 2>/dev/null || true
        cp -L /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources "$root/etc/apt/sources.list.d/" 2>/dev/null || true
    fi
    mkdir -p "$root/etc/ssl/certs"
    cp -a /etc/ssl/certs/. "$root/etc/ssl/certs/"
    for folder in /usr/share/ca-certificates /usr/local/share/ca-certificates; do
        [ ! -d "$folder" ] || { mkdir -p "$root$folder" && cp -a "$folder/." "$root$folder/"; }
    done
    cp -L /etc/pip.conf "$root/etc/" 2>/dev/null || true
}

apt_failed() {
    tail -n 30 "$root/tmp/apt.log" >&2
    fail "could not $*"
}

# inside COMMAND…: run it in the root, with a plain environment and the way to the network.
inside() {
    # shellcheck disable=SC2046 # a list of assignments
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        $(env | grep -iE '^(https?|no)_proxy=') chroot "$root" "$@"
}

# install PACKAGES…: by apt, with what they depend on and nothing else.
install_inside() {
    inside apt-get -y -q install --no-install-recommends "$@" >"$root/tmp/apt.log" 2>&1 </dev/null ||
        apt_failed "install $*"
}
