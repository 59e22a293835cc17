# The life of a disk, in the parts that PARTS names: each starts guests of its own.

# Verified random I/O, a file system, and a second domain that finds both as the first left them.
part_data() {
  local id
  id=$(guest_define fill) && disk_plug $id xvda 64M && guest_start || return 1
  guest_wait 300 || return 1
  disk_unplug $id xvda || return 1

  step "the guest is rebooted: a new domain on the same disk"
  id=$(guest_define reboot) && disk_plug $id xvda 64M && guest_start || return 1
  guest_wait 300 || return 1
  disk_unplug $id xvda
}

# workers_confined: none has anything of root's.
workers_confined() {
  local pid
  [ "$BACKEND" = zerotap ] || return 0
  step "workers are confined"
  for pid in $(pidof zerotap-datapath); do
    grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/$pid/status
    grep -q '^Uid:.205[0-9]*' /proc/$pid/status && grep -q '^CapEff:.0*$' /proc/$pid/status &&
      grep -q '^CapBnd:.0*$' /proc/$pid/status && grep -q '^NoNewPrivs:.1' /proc/$pid/status &&
      grep -q '^Seccomp:.2' /proc/$pid/status || { echo "dom0: worker $pid is not confined"; return 1; }
  done
}

# A disk that comes and goes while the guest runs, idle and under I/O; and one that may not be written.
part_plug() {
  local id
  id=$(guest_define plug) && disk_plug $id xvda 64M && guest_start || return 1
  workers_confined || return 1

  guest_await written 300 || return 1
  step "unplug and plug again"
  disk_unplug $id xvda || return 1
  guest_await gone 300 || return 1
  disk_plug $id xvda 64M || return 1
  guest_await read 300 || return 1

  step "unplug under I/O"
  disk_plug $id xvdb 64M && guest_await busy 300 || return 1
  disk_unplug $id xvdb || return 1
  guest_await torn 300 || return 1
  disk_plug $id xvdb 64M && guest_await mended 300 || return 1

  if [ "$BACKEND" = zerotap ]; then
    step "a guest that takes a read-only disk for a writable one"
    guest_tell writable 1
    plug_misleading $id xvdc 16M && guest_await refused 300 || return 1
    [ "$(cmp_zero "$(disk_data xvdc)")" = same ] || { echo "dom0: the read-only disk was written"; return 1; }
    disk_show $id xvdc
  else
    # The kernel's back end cannot be stopped between its steps, so its guest cannot be misled.
    guest_tell writable 0
  fi
  guest_wait 300 || return 1
  disk_unplug $id xvda && disk_unplug $id xvdb || return 1
  [ "$BACKEND" != zerotap ] || disk_unplug $id xvdc
}

# A disk that grows under I/O. The kernel's RAM disks do not.
part_grow() {
  local id vdi
  [ "$BACKEND" = zerotap ] || return 0
  id=$(guest_define grow) && disk_plug $id xvdd 16M && guest_start || return 1
  guest_await small 300 || return 1
  vdi=$(cat /run/disk/xvdd)
  step "the disk grows from 16 to 32 MiB"
  zerotap vdi resize "$vdi" --size 32M && guest_await grown 300 || return 1

  step "the daemon is killed right after the next resize was asked for, and started again"
  zerotap vdi resize "$vdi" --size 48M &
  kill -KILL "$(daemon_pid)"
  disk_backend_start || return 1
  zerotap vdi resize "$vdi" --size 48M || return 1
  guest_wait 300 || return 1
  disk_unplug $id xvdd && [ "$(stat -c %s "$(disk_data xvdd)")" = $((48 << 20)) ]
}

# Workers are killed, and replaced by their own program, under verified I/O. KILLS of each are wanted.
part_kill() {
  local id worker n=0
  [ "$BACKEND" = zerotap ] || return 0
  id=$(guest_define kill) && disk_plug $id xvda 64M && guest_start || return 1
  guest_await busy 300 || return 1
  while [ $n -lt ${KILLS:-3} ]; do
    n=$((n + 1))
    worker=$(serving $id) || return 1
    step "kill $n, of worker $worker"
    kill -KILL $worker && within 120 another_serves $id $worker || { disk_show $id xvda; return 1; }
    worker=$(serving $id) || return 1
    step "upgrade $n, of worker $worker"
    zerotap worker upgrade --all && within 120 another_serves $id $worker || { disk_show $id xvda; return 1; }
    [ ! -e /proc/$worker ] || { echo "dom0: worker $worker was upgraded, and is still there"; return 1; }
  done
  guest_tell enough
  disk_show $id xvda
  guest_wait 300 || return 1
  disk_unplug $id xvda
}

# A domain is saved under verified I/O, and goes on as another one, whose disk is plugged before it wakes
# up: what a migration is for its disk.
part_move() {
  local id state=/run/guest/saved before
  [ "$BACKEND" = zerotap ] || return 0
  id=$(guest_define move) && disk_plug $id xvda 64M && guest_start || return 1
  guest_await busy 300 || return 1
  before=$(writes $id)
  within 120 writes_more $id "$before" || return 1
  step "domain $id is saved"
  xl save $id $state && disk_unplug $id xvda || return 1
  id=$(guest_restore $state) && rm $state || return 1
  step "it is domain $id now"
  disk_plug $id xvda 64M && guest_start && within 120 backend_is $id xvda 4 || return 1
  before=$(writes $id)
  within 120 writes_more $id "$before" || { disk_show $id xvda; return 1; }
  guest_tell enough
  guest_wait 300 || return 1
  disk_unplug $id xvda
}

# serving DOMID: the process that serves xvda, once it has served for a while: who dies sooner is tried
# ever more seldom.
serving() {
  local before
  before=$(writes $1)
  within 120 writes_more $1 "$before" && sleep 2 && pidof zerotap-datapath
}

# another_serves DOMID PROCESS: whether one process serves, which is not PROCESS.
another_serves() {
  local now before
  now=$(pidof zerotap-datapath) && [ "$now" != "$2" ] && [ "${now#* }" = "$now" ] || return 1
  before=$(writes $1)
  within 30 writes_more $1 "$before"
}

# writes DOMID: how many writes the serving worker has answered. A new worker counts from zero.
writes() { zerotap vbd show --domid $1 --device xvda --interval 0 --json | grep -m 1 '"writes"'; }
writes_more() { local now; now=$(writes $1) && [ -n "$now" ] && [ "$now" != "$2" ]; }

# plug_misleading DOMID DEVICE SIZE: a read-only disk whose guest does not know. Linux's front end reads
# `info` once, when the back end has connected; both are held still while the flag is taken out.
plug_misleading() {
  local plugging info
  xl pause $1
  disk_plug $1 $2 $3 r & # it may wait for the guest
  plugging=$!
  within 120 backend_is $1 $2 2 || return 1
  kill -STOP "$(daemon_pid)"
  xl unpause $1
  within 120 frontend_is $1 $2 3 || return 1
  xl pause $1
  kill -CONT "$(daemon_pid)"
  within 120 backend_is $1 $2 4 || return 1
  info=$(backend_dir $1 $2)/info
  [ $(($(xenstore-read "$info") & 4)) = 4 ] || { echo "dom0: the back end does not say read-only"; return 1; }
  xenstore-write "$info" 0
  xl unpause $1
  wait $plugging
}

# cmp_zero FILE: "same" when it holds nothing but zeroes.
cmp_zero() { if tr -d '\0' <"$1" | head -c 1 | grep -q .; then echo different; else echo same; fi; }

for part in ${PARTS:-data plug}; do
  step "part $part"
  part_$part || { echo "dom0: part $part failed"; exit 1; }
done
