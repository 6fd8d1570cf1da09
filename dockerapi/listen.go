package dockerapi

import (
	"errors"
	"net"
)

// ErrInUse says that a live process answers on a socket already.
var ErrInUse = errors.New("another agent serves it")

// Listen makes the plugin socket at path, readable and writable by its owner
// only, with parent directories as needed. A socket nobody listens on is
// replaced; one that is served is left alone ([ErrInUse]), and so is a file that
// is no socket. Closing the listener removes the socket.
func Listen(path string) (net.Listener, error) {
	return nil, errors.ErrUnsupported
}

// ListenOrInherit is [Listen], unless systemd passed the socket to this process
// (systemd.socket(5)): then that one is used, and closing it leaves the file to
// systemd, so that engines queue up instead of being refused while the agent
// restarts. A passed socket with another path is an error.
func ListenOrInherit(path string) (net.Listener, error) {
	return nil, errors.ErrUnsupported
}
