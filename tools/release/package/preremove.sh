#!/bin/sh
# Before the files are removed. Nothing is stopped if this is a part of an update.
#
# Arguments: of Debian "remove" or "upgrade"; of RPM 0 (removed), 1 (updated).
set -e
case $1 in
remove | 0) ;;
*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl stop orch.service || echo "orch was not stopped" >&2
fi
if command -v systemctl >/dev/null; then
	systemctl disable orch.service || echo "orch was not disabled" >&2
fi
