package dockerapi

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/docker/go-plugins-helpers/ipam"
)

// maxPoolID bounds a pool's id, in bytes. Ours are far shorter; whatever comes
// back from an engine is used as a key.
const maxPoolID = 1024

func poolID(s string) (string, error) {
	if s == "" {
		return "", errors.New("the PoolID is empty")
	}
	if len(s) > maxPoolID {
		return "", fmt.Errorf("PoolID is %d bytes long, at most %d are allowed", len(s), maxPoolID)
	}
	return s, nil
}

func decodeRequestPool(w ipam.RequestPoolRequest) (RequestPoolRequest, error) {
	r := RequestPoolRequest{AddressSpace: w.AddressSpace, Options: w.Options, V6: w.V6}
	if r.Options == nil {
		r.Options = make(map[string]string)
	}
	f := v4
	if w.V6 {
		f = v6
	}
	var err error
	if r.Pool, err = parsePrefix("Pool", w.Pool, f); err != nil {
		return r, err
	}
	if r.SubPool, err = parsePrefix("SubPool", w.SubPool, f); err != nil {
		return r, err
	}
	if r.SubPool.IsValid() && !r.Pool.IsValid() {
		return r, fmt.Errorf("SubPool %s without a Pool: --ip-range needs --subnet", r.SubPool)
	}
	return r, nil
}

func decodeRequestAddress(w ipam.RequestAddressRequest) (RequestAddressRequest, error) {
	r := RequestAddressRequest{Options: make(map[string]string)}
	var err error
	if r.PoolID, err = poolID(w.PoolID); err != nil {
		return r, err
	}
	if r.Addr, err = parseAddr("Address", w.Address, anyFamily); err != nil {
		return r, err
	}
	for k, v := range w.Options {
		switch k {
		case optAddressType:
			// The only type libnetwork knows. Giving an ordinary address for one
			// it may learn later would be a guess.
			if v != optGateway {
				return r, fmt.Errorf("option %s is %q, want %q", k, clip(v), optGateway)
			}
			r.Kind = AddressGateway
		case optEndpointName:
			r.EndpointName = v
		default:
			r.Options[k] = v
		}
	}
	return r, nil
}

// releaseAddress is a decoded ReleaseAddress.
type releaseAddress struct {
	PoolID string
	Addr   netip.Addr
}

func decodeReleaseAddress(w ipam.ReleaseAddressRequest) (releaseAddress, error) {
	var r releaseAddress
	var err error
	if r.PoolID, err = poolID(w.PoolID); err != nil {
		return r, err
	}
	if r.Addr, err = parseAddr("Address", w.Address, anyFamily); err != nil {
		return r, err
	}
	if !r.Addr.IsValid() {
		return r, errors.New("the Address is empty")
	}
	return r, nil
}
