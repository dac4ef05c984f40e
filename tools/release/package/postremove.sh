#!/bin/sh
# After the files are removed. Only a purge removes settings, keys and the audit log, and not
# even a purge removes snapshots: they are copies of what users have. The user stays, so that no
# other gets its number, and with it files that are left elsewhere. RPM has no purge.
#
# Arguments: of Debian "remove", "purge" or another; of RPM 0 (removed), 1 (updated).
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
[ "$1" = purge ] || exit 0
snapshots=/var/lib/orch/snapshots
if [ -d "$snapshots" ] && [ -n "$(ls -A "$snapshots")" ]; then
	echo "the snapshots in $snapshots are left" >&2
	rm -rf /etc/orch && find /var/lib/orch -mindepth 1 -maxdepth 1 ! -name snapshots -exec rm -rf {} + || echo "a part of /etc/orch or /var/lib/orch is left" >&2
	exit 0
fi
rm -rf /etc/orch /var/lib/orch || echo "a part of /etc/orch or /var/lib/orch is left" >&2
