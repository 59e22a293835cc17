# Guests, as a scenario in dom0 handles them. One at a time: the functions mean the latest one defined.

# report WORDS...: a line for xtask, on a port of its own that no console message can break.
report() { echo "$*" >/dev/ttyS1; }

# guest_define [PHASE]: creates the next guest, paused, and prints its domid. Its script finds PHASE in
# a variable of that name, by which one script serves a guest that is rebooted.
guest_define() {
  local number name
  number=$(($(cat /run/guest/number 2>/dev/null || echo 0) + 1))
  name=guest$number
  cat >/run/guest/$name.cfg <<C
name = "$name"
type = "$GUEST_TYPE"
memory = 384
vcpus = $GUEST_VCPUS
kernel = "/root/vmlinuz"
ramdisk = "/root/guest.cpio"
extra = "console=hvc0 quiet panic=1 phase=${1:-only}"
on_poweroff = "destroy"
on_reboot = "destroy"
on_crash = "destroy"
C
  # The CPU that dom0 leaves to it, see the hypervisor's options.
  [ "$GUEST_TYPE" = pv ] || echo 'cpus = "1"' >>/run/guest/$name.cfg
  xl create -p /run/guest/$name.cfg >&2 || return 1
  echo $number >/run/guest/number
  xl domid $name | tee /run/guest/domid
  touch "$(guest_log)"
  # Its output must not belong to the caller's pipe, or $(guest_define) would never end.
  (tail -n +1 -f "$(guest_log)" | sed "s/^/$name: /") >/dev/console 2>&1 &
}

# guest_restore FILE: makes the guest that was saved there a domain again, paused; prints its new domid.
guest_restore() {
  xl restore -p "$1" >&2 || return 1
  xl domid "$(guest_name)" | tee /run/guest/domid
}

guest_name() { echo "guest$(cat /run/guest/number)"; }
guest_domid() { cat /run/guest/domid; }

# guest_log: the file that holds all that the guest has printed.
guest_log() { echo "/var/log/xen/console/guest-$(guest_name).log"; }

guest_start() { xl unpause "$(guest_domid)"; }
guest_alive() { xenstore-exists "/local/domain/$(guest_domid)"; }

# guest_wait SECONDS: until the guest is gone; returns what its script exited with. Asking xenstored is
# cheap, while each `xl` costs an emulated CPU a tenth of a second.
guest_wait() {
  local left=$((${1:-120} * 2)) status
  while guest_alive && [ $left -gt 0 ]; do usleep 500000; left=$((left - 1)); done
  sleep 1 # the console daemon may still be writing
  status=$(tr -d '\r' <"$(guest_log)" | sed -n 's/^guest script exited \([0-9]*\)$/\1/p')
  if guest_alive; then
    echo "dom0: the guest is still running after ${1:-120} s"
    xl destroy "$(guest_domid)"
    [ "$status" = 0 ] && status=
  fi
  report "verdict guest ${status:-none}"
  return ${status:-1}
}

# What guest and dom0 tell each other, under the one xenstore directory that both may write.
guest_note() { echo "/local/domain/$(guest_domid)/data/$1"; }

# guest_tell WORD [VALUE]: lets the guest's `await WORD` go on.
guest_tell() { xenstore-write "$(guest_note "to-guest/$1")" "${2:-1}"; }

# guest_await WORD SECONDS: until the guest says `tell WORD`; fails when it never does.
guest_await() {
  local left=$((${2:-120} * 2))
  until xenstore-exists "$(guest_note "from-guest-$1")"; do
    guest_alive || { echo "dom0: the guest ended before it said $1"; guest_wait 1; return 1; }
    left=$((left - 1))
    [ $left -gt 0 ] || { echo "dom0: the guest did not say $1 in time"; return 1; }
    usleep 500000
  done
}

# within SECONDS COMMAND...: tries until the command succeeds.
within() {
  local left=$(($1 * 5))
  shift
  until "$@" >/dev/null 2>&1; do
    left=$((left - 1))
    [ $left -gt 0 ] || { echo "dom0: never true: $*"; return 1; }
    usleep 200000
  done
}

# step WORDS...: says in the console what the scenario does now.
step() { echo "dom0: $(cut -d. -f1 /proc/uptime) s: $*"; }
