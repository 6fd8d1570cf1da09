package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Image is the test image, present in every engine with the same id: busybox
// with all its applets, and the probe, which is what a container runs unless
// told otherwise (`probe serve`: see the command probe).
const Image = "carrick/test:1"

// busybox must be the static one: there is no dynamic linker in the image.
const busybox = "/bin/busybox"

// writeImage makes the file `docker load` reads, in the format of `docker save`.
// Same programs, same bytes, and thereby the same image id in every engine.
func writeImage(ctx context.Context, probe, out string) error {
	if _, err := debianProgram(busybox, "busybox-static"); err != nil {
		return err
	}
	static, err := isStatic(busybox)
	if err != nil {
		return err
	}
	if !static {
		return fmt.Errorf("%s is not static: apt-get install --no-install-recommends busybox-static", busybox)
	}
	list, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("%s --list: %w", busybox, err)
	}
	layer, err := imageLayer(strings.Fields(string(list)), probe)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(layer)
	type config struct {
		Env, Cmd []string
	}
	type rootfs struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	conf, err := json.Marshal(struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
		Config       config `json:"config"`
		RootFS       rootfs `json:"rootfs"`
	}{
		Architecture: "amd64", OS: "linux",
		Config: config{Env: []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin"}, Cmd: []string{"/bin/probe", "serve"}},
		RootFS: rootfs{Type: "layers", DiffIDs: []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return err
	}
	id := sha256.Sum256(conf)
	confName := hex.EncodeToString(id[:]) + ".json"
	type manifest struct {
		Config           string
		RepoTags, Layers []string
	}
	man, err := json.Marshal([]manifest{{Config: confName, RepoTags: []string{Image}, Layers: []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		data []byte
	}{{confName, conf}, {"layer.tar", layer}, {"manifest.json", man}} {
		if err := addFile(w, f.name, 0o644, f.data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(out, b.Bytes(), 0o644)
}

// imageLayer is the file system of the image, without times.
func imageLayer(applets []string, probe string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root", "www"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	files := []struct{ name, from string }{{"bin/busybox", busybox}, {"bin/probe", probe}}
	for _, f := range files {
		data, err := os.ReadFile(f.from)
		if err != nil {
			return nil, err
		}
		if err := addFile(w, f.name, 0o755, data); err != nil {
			return nil, err
		}
	}
	for _, a := range applets {
		if a == "busybox" { // `busybox --list` names itself
			continue
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	if err := addFile(w, "etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n")); err != nil {
		return nil, err
	}
	if err := addFile(w, "etc/group", 0o644, []byte("root:x:0:\n")); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func addFile(w *tar.Writer, name string, mode int64, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// loadImage gives the host's engine the test image.
func (h *Host) loadImage(ctx context.Context) error {
	_, err := h.Docker(ctx, "load", "-q", "-i", h.lab.imageFile())
	return err
}
