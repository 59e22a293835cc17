#!/bin/busybox sh
# The guest's first process: devices and modules, then the scenario's script; prints what it exited with.
/bin/busybox --install -s /bin
export PATH=/bin LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu HOME=/root
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
PHASE=$(sed 's/.*phase=\([a-z0-9]*\).*/\1/' /proc/cmdline)
# The last to load is blkfront: it waits for disks whose back end does not answer, up to five minutes.
while read -r module parameters || [ -n "$module" ]; do
  insmod "/mod/$module.ko" $parameters
done </etc/modules
. /lib/guest.sh
(. /script.sh)
status=$?
sync
echo # whatever was printed last may lack its newline
echo "guest script exited $status"
sleep 1
poweroff -f
