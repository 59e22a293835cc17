# One RAM disk, served twice to one guest: xvda by the peer, xvdb by zerotap. The peer is the kernel's
# blkback (PEER=vbd) or QEMU (PEER=qdisk). Between the guest's runs dom0's processor time is read from
# Xen's own counter.

# dom0_seconds: processor time of dom0 so far.
dom0_seconds() { xl list 0 | awk 'END { print $NF }'; }

# on_change NODE: ends when the node changes. A watch costs nothing while it waits, unlike asking.
on_change() { xenstore-watch -n 2 "$1" >/dev/null; }

ramdisks 64M && dd if=/dev/urandom of=/dev/ram0 bs=1M 2>/dev/null
id=$(guest_define bench) || exit 1
(
  disk_kind() { echo $PEER; }
  # QEMU as libxl starts it for a PV guest, and its disk as libxl has it: the page cache, and threads.
  [ $PEER = vbd ] || xen-qemu-system-i386 -xen-domid $id -xen-attach -M xenpv -m 32 -nodefaults \
    -no-user-config -display none >/var/log/qemu.log 2>&1 &
  xenbus_plug $id xvda w physical-device 1:0 hotplug-status connected params aio:/dev/ram0 &&
    within 120 backend_is $id xvda 2
) || { cat /var/log/qemu.log; exit 1; }
mkfs.ext4 -q /dev/ram3 && mount -t ext4 /dev/ram3 /srv || exit 1 # holds the record of the volume
sr=$(zerotap sr create --name bench --device-config path=/srv) || exit 1
vdi=$(zerotap vdi create --sr $sr --name ram --device /dev/ram0) || exit 1
use="--domid $id --device xvdb"
zerotap vdi attach $vdi $use && zerotap vdi activate $vdi $use &&
  zerotap vbd plug $use --vdi $vdi || exit 1

runs=$((ROUNDS * JOBS * 2))
on_change "$(guest_note from-guest-ready)" &
ready=$!
guest_start
wait $ready
run=1
while [ $run -le $runs ]; do
  guest_alive || { echo "dom0: the guest died in run $run"; exit 1; }
  on_change "$(guest_note from-guest-end-$run)" &
  ended=$!
  sleep 1 # the watch must be there, and what the last run stirred up be over
  before=$(dom0_seconds)
  guest_tell go-$run
  wait $ended
  after=$(dom0_seconds)
  report "bench $(xenstore-read "$(guest_note from-guest-end-$run)") $before $after"
  run=$((run + 1))
done
disk_show $id xvdb
guest_tell end
guest_wait 60
