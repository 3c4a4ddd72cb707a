package connect

import "net"

// OwnAddress reports whether a text is an IP address of this machine, a loopback address included. A
// name is none, and nor is an address when the machine does not tell its own.
func OwnAddress(address string) bool {
	ip := net.ParseIP(address)
	if ip == nil {
		return false
	}
	if ip.IsLoopback() {
		return true
	}
	own, _ := net.InterfaceAddrs()
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip) {
			return true
		}
	}
	return false
}
