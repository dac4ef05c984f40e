#!/bin/sh
# After the files are removed. Only a purge removes settings, keys, the audit log and the user.
# RPM has no purge.
#
# Arguments: of Debian "remove", "purge" or another; of RPM 0 (removed), 1 (updated).
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
[ "$1" = purge ] || exit 0
rm -rf /etc/orch /var/lib/orch
if getent passwd orch >/dev/null; then
	userdel orch
fi
# userdel may have removed it.
if getent group orch >/dev/null; then
	groupdel orch
fi
