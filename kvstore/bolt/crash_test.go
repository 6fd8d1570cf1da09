package bolt_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/carrick-net/carrick/kvstore"
	"github.com/carrick-net/carrick/kvstore/bolt"
)

// writerEnv makes the test binary a writer instead: it holds the file's path.
const writerEnv = "CARRICK_TEST_BOLT_WRITER"

// TestWriterProcess is not a test but the process that TestKilledWhileWriting
// kills: it writes until it dies, and says what it has written after it has.
func TestWriterProcess(t *testing.T) {
	path := os.Getenv(writerEnv)
	if path == "" {
		return
	}
	s, err := bolt.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Lease(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; ; i++ {
		n := fmt.Append(nil, i)
		txn := new(kvstore.Txn).Put("one", n).Put("two", n).PutLeased("node/writer", n, l.ID())
		rev, err := s.Txn(t.Context(), txn)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("wrote", i, rev)
	}
}

// The agent is killed in the middle of a write: what it was told was written is
// there, what is there is whole, and the file opens at once.
func TestKilledWhileWriting(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.db")
	for round := range 4 {
		writer := exec.Command(os.Args[0], "-test.run", "^TestWriterProcess$")
		writer.Env = append(os.Environ(), writerEnv+"="+path)
		writer.Stderr = os.Stderr
		writer.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := writer.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		var last, rev int
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if _, err := fmt.Sscanf(lines.Text(), "wrote %d %d", &last, &rev); err != nil {
				t.Errorf("the writer says %q", lines.Text())
			}
			if last == 5+round {
				_ = writer.Process.Kill() // what it says until it dies is read on
			}
		}
		_ = writer.Wait()
		if last < 5+round {
			t.Fatalf("the writer ended by itself after %d", last)
		}

		s := open(t, path)
		v, err := s.List(t.Context(), kvstore.Under(""))
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Entries) != 2 || string(v.Entries[0].Value) != string(v.Entries[1].Value) {
			t.Fatalf("half a transaction or a dead writer's lease: %+v", v.Entries)
		}
		var found int
		if _, err := fmt.Sscan(string(v.Entries[0].Value), &found); err != nil || found < last {
			t.Errorf("the writer was told that %d was written, the file has %d", last, found)
		}
		if v.Revision < kvstore.Revision(rev) {
			t.Errorf("the writer saw revision %d, the file has %d", rev, v.Revision)
		}
		if _, err := s.Get(t.Context(), "node/writer"); !errors.Is(err, kvstore.ErrNotFound) {
			t.Errorf("the dead writer's lease: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
