package testenv

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// gateway is a server that speaks S3 over a directory. It is built from the module
// proxy, with a module graph of its own.
const gateway = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"

// S3 starts a server that speaks S3, sets the credentials in the test's environment,
// and returns the address of a place in an empty bucket.
func S3(t *testing.T) string {
	t.Helper()
	if os.Getenv("POSTBOOK_TEST_LONG") == "" {
		t.Skip("POSTBOOK_TEST_LONG builds a server that speaks S3, which takes minutes the first time")
	}
	program, err := exec.LookPath("versitygw")
	if err != nil {
		bin := t.TempDir()
		build := exec.Command("go", "install", gateway)
		build.Env = append(os.Environ(), "GOBIN="+bin, "GOFLAGS=")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", gateway, err, out)
		}
		program = filepath.Join(bin, "versitygw")
	}
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "postbook-test"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--port", addr, "posix", "--sidecar", t.TempDir(), dir)
	t.Setenv("AWS_ACCESS_KEY_ID", "postbook")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "not a secret at all")
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY=postbook", "ROOT_SECRET_KEY=not a secret at all")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	Eventually(t, 30*time.Second, func() error {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the server that speaks S3 ended: %v\n%s", err, said.String())
		default:
		}
		res, err := http.Get("http://" + addr + "/")
		if err != nil {
			return err
		}
		return res.Body.Close()
	})
	return "s3://postbook-test/here?region=us-east-1&endpoint=http://" + addr
}
