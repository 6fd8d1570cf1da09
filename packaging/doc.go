// Package packaging holds what Carrick is installed with: systemd's units here,
// plugin.json and the Dockerfile in the module's root. Its tests hold these files
// to what the agent and the engines need of them; there is no code.
package packaging
