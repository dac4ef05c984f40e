package config

// opsOff is the value of ORCH_OPS_ADDR without a listener. An empty value is the default, as
// of every variable.
const opsOff = "off"

// Ops returns the address of the operators' listener, or "" for none. With required false,
// the service runs without the listener if the address is in use: nobody asked for it.
func (c *Config) Ops() (addr string, required bool) {
	if c.OpsAddr == opsOff {
		return "", false
	}
	return c.OpsAddr, c.AdminOpsOnly || c.lookup["ORCH_OPS_ADDR"] != ""
}
