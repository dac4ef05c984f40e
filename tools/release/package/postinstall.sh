#!/bin/sh
# After the files are there. A first installation starts and enables nothing, because orch has
# no settings yet. An update restarts orch if it runs, which takes as long as its operations.
#
# Arguments: of Debian "configure" and the version before; of RPM 1 (installed), 2 (updated).
set -e
[ -d /run/systemd/system ] || exit 0
case $1 in
configure | 1 | 2) systemctl daemon-reload ;;
esac
if [ "$1" = 2 ] || { [ "$1" = configure ] && [ -n "$2" ]; }; then
	systemctl try-restart orch.service || echo "orch does not start: journalctl -u orch says why" >&2
fi
