# Disks served by zerotap: volumes of a file SR, on ext4, on a RAM disk. All of it by RPC.

disk_kind() { echo zerotap; }
daemon_pid() { cat /run/zerotap.pid; }

# disk_backend_start: the daemon. A scenario may call it again after it has ended one.
disk_backend_start() {
  mkdir -p /var/lib/zerotap /run/zerotap
  zerotap serve --config /etc/zerotap.toml --run-dir /run/zerotap --state /var/lib/zerotap/state.db \
    >>/var/log/zerotap.log 2>&1 &
  echo $! >/run/zerotap.pid
  within 120 zerotap worker ls || { zerotap worker ls; return 1; }
}

# disk_backend_stop STATUS: the daemon's log is of interest only when something went wrong.
disk_backend_stop() {
  [ "$1" = 0 ] && return
  echo "dom0: the daemon's log:"
  tail -n 200 /var/log/zerotap.log
}

# sr_uuid: the one SR, made at the first call.
sr_uuid() {
  if [ ! -e /run/disk/sr ]; then
    ramdisks 384M && mkfs.ext4 -q /dev/ram3 >&2 && mount -t ext4 /dev/ram3 /srv || return 1
    zerotap sr create --name ram --device-config path=/srv >/run/disk/sr || return 1
  fi
  cat /run/disk/sr
}

# vdi_uuid DEVICE SIZE: the volume behind a device name, made at the first call.
vdi_uuid() {
  if [ ! -e "/run/disk/$1" ]; then
    zerotap vdi create --sr "$(sr_uuid)" --name "$1" --size "$2" >"/run/disk/$1.new" || return 1
    mv "/run/disk/$1.new" "/run/disk/$1"
  fi
  cat "/run/disk/$1"
}

# disk_data DEVICE: the file behind a disk.
disk_data() { find /srv -type f -name "*$(cat "/run/disk/$1")*" -size +100k; }

# disk_plug DOMID DEVICE SIZE [r|w]: gives the domain a disk; with the same DEVICE again the same data.
disk_plug() {
  local vdi use="--domid $1 --device $2" mode=
  sr_uuid >/dev/null && vdi=$(vdi_uuid "$2" "$3") || return 1
  [ "${4:-w}" = w ] || mode=--read-only
  zerotap vdi attach $vdi $use $mode && zerotap vdi activate $vdi $use $mode &&
    zerotap vbd plug $use --vdi $vdi $mode
}

# disk_unplug DOMID DEVICE [--force]: takes it away again; its data stays.
disk_unplug() {
  local vdi use="--domid $1 --device $2"
  vdi=$(cat "/run/disk/$2")
  zerotap vbd unplug $use $3 && zerotap vdi deactivate $vdi $use && zerotap vdi detach $vdi $use
}

# disk_show DOMID DEVICE: what is known about it.
disk_show() { zerotap vbd show --domid "$1" --device "$2"; }
