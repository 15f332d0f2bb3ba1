package sunrpc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Numbers of RFC 1833.
const (
	procGetPort = 3 // PMAPPROC_GETPORT of version 2
	procGetAddr = 3 // RPCBPROC_GETADDR of versions 3 and 4
	protoTCP    = 6
	protoUDP    = 17
	maxAddress  = 256 // bytes of a universal address, our own bound
)

// Service is a service whose port rpcbind knows.
type Service struct {
	Program, Version uint32
	Network          string // "tcp" or "udp"
}

// LookUp asks rpcbind for a service's port: with GetPort, or with GetAddr where
// rpcbind's address is an IPv6 one, which GetPort does not support.
//
// For a service that is not registered, the error is an [*AnswerError] with [NotRegistered].
// There is no error where only other versions of it are registered: rpcbind then tells
// the port of one of these, and a call there ends in [ProgramMismatch].
func LookUp(ctx context.Context, network string, rpcbind netip.AddrPort, service Service) (uint16, error) {
	if rpcbind.Addr().Unmap().Is4() {
		return GetPort(ctx, network, rpcbind, service)
	}
	address, err := GetAddr(ctx, network, rpcbind, service)
	return address.Port(), err
}

// GetPort asks rpcbind by its version 2, which is for IPv4. See LookUp for network and errors.
func GetPort(ctx context.Context, network string, rpcbind netip.AddrPort, service Service) (uint16, error) {
	c := call{program: ProgramRPCBind, version: 2, procedure: procGetPort}
	protocol := uint32(protoTCP)
	if service.Network == "udp" {
		protocol = protoUDP
	}
	c.arguments = words(nil, service.Program, service.Version, protocol, 0)
	results, _, err := do(ctx, network, rpcbind, c)
	if err != nil {
		return 0, err
	}
	port, err := parsePort(results)
	if err != nil {
		return 0, c.failed(network, rpcbind, Answered, err)
	}
	return port, nil
}

func parsePort(results []byte) (uint16, error) {
	r := reader{rest: results}
	port := r.word()
	switch {
	case r.short || port > 1<<16-1:
		return 0, fmt.Errorf("port %d in %d bytes: %w", port, len(results), ErrMalformed)
	case port == 0:
		return 0, &AnswerError{Status: NotRegistered}
	}
	return uint16(port), nil
}

// GetAddr asks rpcbind by its version 4, or by 3 where rpcbind has no later one. The address
// is of the same family as rpcbind's. See LookUp for network and errors.
func GetAddr(ctx context.Context, network string, rpcbind netip.AddrPort, service Service) (netip.AddrPort, error) {
	netid := service.Network
	if !rpcbind.Addr().Unmap().Is4() {
		netid += "6"
	}
	c := call{program: ProgramRPCBind, version: 4, procedure: procGetAddr}
	c.arguments = words(nil, service.Program, service.Version)
	for _, s := range []string{netid, "", ""} { // r_netid, r_addr, r_owner
		c.arguments = text(c.arguments, s)
	}
	results, _, err := do(ctx, network, rpcbind, c)
	if answer, ok := errors.AsType[*AnswerError](err); ok && answer.Status == ProgramMismatch && answer.High == 3 {
		c.version = 3
		results, _, err = do(ctx, network, rpcbind, c)
	}
	if err != nil {
		return netip.AddrPort{}, err
	}
	address, err := parseAddress(results)
	if err != nil {
		return netip.AddrPort{}, c.failed(network, rpcbind, Answered, err)
	}
	return address, nil
}

func parseAddress(results []byte) (netip.AddrPort, error) {
	r := reader{rest: results}
	universal := string(r.opaque(maxAddress))
	switch {
	case r.short:
		return netip.AddrPort{}, fmt.Errorf("an address in %d bytes: %w", len(results), ErrMalformed)
	case universal == "":
		return netip.AddrPort{}, &AnswerError{Status: NotRegistered}
	}
	return ParseUniversal(universal)
}

// ParseUniversal reads a universal address (RFC 5665, section 5.2.3): an IP
// address followed by the port's two bytes, as in 192.0.2.1.8.1 or ::1.0.111.
// An error wraps [ErrMalformed].
func ParseUniversal(universal string) (netip.AddrPort, error) {
	malformed := fmt.Errorf("universal address %q: %w", universal, ErrMalformed)
	low := strings.LastIndexByte(universal, '.')
	if low < 0 {
		return netip.AddrPort{}, malformed
	}
	high := strings.LastIndexByte(universal[:low], '.')
	if high < 0 {
		return netip.AddrPort{}, malformed
	}
	host, err := netip.ParseAddr(universal[:high])
	highByte, err2 := strconv.ParseUint(universal[high+1:low], 10, 8)
	lowByte, err3 := strconv.ParseUint(universal[low+1:], 10, 8)
	if errors.Join(err, err2, err3) != nil {
		return netip.AddrPort{}, malformed
	}
	return netip.AddrPortFrom(host, uint16(highByte<<8|lowByte)), nil
}
