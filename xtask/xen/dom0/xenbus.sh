# The xenstore side of a virtual block device, for scenarios that look at it or play the toolstack.

# device_number xvdX: what the protocol calls the device.
device_number() {
  local letter=${1#xvd}
  echo $((202 * 256 + 16 * ($(printf %d "'$letter") - 97)))
}

frontend_dir() { echo "/local/domain/$1/device/vbd/$(device_number "$2")"; } # DOMID DEVICE
backend_dir() { echo "/local/domain/0/backend/$(disk_kind)/$1/$(device_number "$2")"; } # DOMID DEVICE

# frontend_is DOMID DEVICE STATE, backend_is DOMID DEVICE STATE: for `within`.
frontend_is() { [ "$(xenstore-read "$(frontend_dir "$1" "$2")/state" 2>/dev/null)" = "$3" ]; }
backend_is() { [ "$(xenstore-read "$(backend_dir "$1" "$2")/state" 2>/dev/null)" = "$3" ]; }

# shared_dir PATH OWNER READER: a directory whose permissions all later keys inherit. It must have them
# before a back end sees the device: what the back end offers at once would be unreadable otherwise, and
# Linux's front end then does without, silently.
shared_dir() {
  xenstore-exists "$1" && return
  xenstore-write "$1" ""
  xenstore-chmod "$1" "n$2" "r$3"
}

# xenbus_plug DOMID DEVICE MODE KEY VALUE...: both directories, each made live by its state. The front
# end's comes when the back end's directory is there: a running guest looks at once, and gives up on a
# device without another end. The back end's comes last: some take a device without a front end for gone.
xenbus_plug() {
  local domid=$1 device=$2 mode=$3 front back
  shift 3
  front=$(frontend_dir "$domid" "$device")
  back=$(backend_dir "$domid" "$device")
  shared_dir "${front%/*}" "$domid" 0
  shared_dir "${back%/*}" 0 "$domid"
  while [ $# -gt 0 ]; do xenstore-write "$back/$1" "$2"; shift 2; done
  xenstore-write "$back/frontend" "$front" "$back/frontend-id" "$domid" "$back/online" 1 \
    "$back/removable" 0 "$back/bootable" 1 "$back/dev" "$device" "$back/type" phy \
    "$back/mode" "$mode" "$back/device-type" disk
  xenstore-write "$front/backend" "$back" "$front/backend-id" 0 \
    "$front/virtual-device" "$(device_number "$device")" "$front/device-type" disk "$front/state" 1
  xenstore-write "$back/state" 1
}

# xenbus_unplug DOMID DEVICE: asks the guest to let go, waits for it, and removes both directories.
xenbus_unplug() {
  local front back
  front=$(frontend_dir "$1" "$2")
  back=$(backend_dir "$1" "$2")
  xenstore-write "$back/online" 0
  if xenstore-exists "$front/state"; then
    xenstore-write "$back/state" 5
    within 120 backend_is "$1" "$2" 6 || return 1
    xenstore-rm "$front"
  fi
  xenstore-rm "$back"
}
