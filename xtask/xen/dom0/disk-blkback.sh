# Disks served by the kernel's blkback: each a RAM disk, so that it compares with nothing but itself.

disk_backend_start() { :; }
disk_backend_stop() { :; }
disk_kind() { echo vbd; }

# disk_data DEVICE: the file or block device behind a disk; xvda has the first RAM disk.
disk_data() { echo "/dev/ram$((($(device_number "$1") - 51712) / 16))"; }

# disk_plug DOMID DEVICE SIZE [r|w]: gives the domain a disk; with the same DEVICE again the same data.
disk_plug() {
  local data
  ramdisks "$3" || return 1
  data=$(disk_data "$2")
  xenbus_plug "$1" "$2" "${4:-w}" physical-device "1:${data#/dev/ram}" hotplug-status connected
}

# disk_unplug DOMID DEVICE: takes it away again; its data stays.
disk_unplug() { xenbus_unplug "$1" "$2"; }

# disk_show DOMID DEVICE: what is known about it.
disk_show() { xenstore-ls -f "$(backend_dir "$1" "$2")"; }
