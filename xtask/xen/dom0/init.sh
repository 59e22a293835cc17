#!/bin/busybox sh
# dom0's first process: brings up devices, xenstored, the console daemon and, when it serves the disks,
# our daemon; then sources the scenario's script and reports its exit status.
/bin/busybox --install -s /bin
export PATH=/bin LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu HOME=/root
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /dev/shm /run/xen /run/xenstored /run/disk /run/guest
mount -t devpts devpts /dev/pts # xenconsoled gives each guest a pseudo terminal
mount -t tmpfs shm /dev/shm
while read -r module || [ -n "$module" ]; do insmod "/mod/$module.ko"; done </etc/modules
mount -t xenfs xenfs /proc/xen
ip link set lo up

xenstored --pid-file /run/xenstored.pid
until [ -S /run/xenstored/socket ]; do usleep 100000; done
xen-init-dom0
xenconsoled --pid-file=/run/xenconsoled.pid --log=guest --log-dir=/var/log/xen/console

. /etc/boot.sh
. /lib/xenbus.sh
. /lib/guest.sh
. /lib/ramdisk.sh
. /lib/disk.sh

# A subshell, so that a script may exit. Functions keep what they must remember in files.
(disk_backend_start && . /script.sh)
status=$?
disk_backend_stop $status
report "verdict dom0 $status"
echo "dom0: script exited $status"
sync
echo o >/proc/sysrq-trigger
sleep 60
