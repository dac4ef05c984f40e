package devstack

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The routing table and the link of Deny.
const (
	deniedTable = 100
	deniedLink  = "void0"
	deniedRule  = 10 // priority; after the rule of the host's own addresses, before all others
)

var anywhere = &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}

// ruleUnreachable is the type of a rule whose packets have no route (FR_ACT_UNREACHABLE in
// Linux's fib_rules.h).
const ruleUnreachable = 7

// Deny prevents a host from connecting to a range of TCP ports of all other hosts. silent:
// its packets are lost, as with a firewall that drops them; otherwise the sender gets an
// error at once. All other connections work. It is undone with the host.
func (n *Network) Deny(name string, first, last uint16, silent bool) error {
	in, err := netlink.NewHandleAt(n.hosts[name].ns)
	if err != nil {
		return fmt.Errorf("host %s: %w", name, err)
	}
	defer in.Close()
	rule := netlink.NewRule()
	rule.Family, rule.Priority = unix.AF_INET, deniedRule
	rule.IPProto, rule.Dport = unix.IPPROTO_TCP, netlink.NewRulePortRange(first, last)
	if silent {
		rule.Table = deniedTable
		err = loseAll(in)
	} else {
		rule.Type = ruleUnreachable
	}
	if err == nil {
		err = in.RuleAdd(rule)
	}
	if err != nil {
		return fmt.Errorf("deny ports of %s: %w", name, err)
	}
	return nil
}

// loseAll creates a routing table whose packets go to a link where nobody receives them.
func loseAll(in *netlink.Handle) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = deniedLink
	void := &netlink.Veth{LinkAttrs: attrs, PeerName: deniedLink + "p"}
	if err := in.LinkAdd(void); err != nil {
		return err
	}
	for _, name := range []string{attrs.Name, void.PeerName} {
		link, err := in.LinkByName(name)
		if err != nil {
			return err
		}
		// Without ARP a packet is sent although no host has its address.
		if err := in.LinkSetARPOff(link); err != nil {
			return err
		}
		if err := in.LinkSetUp(link); err != nil {
			return err
		}
	}
	link, err := in.LinkByName(attrs.Name)
	if err != nil {
		return err
	}
	return in.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Table: deniedTable, Scope: netlink.SCOPE_LINK, Dst: anywhere})
}
