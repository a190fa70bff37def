package pgcluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is whom the server runs as when we are root, which PostgreSQL refuses
// to run as. A nil account is ourselves.
type account struct{ uid, gid int }

func serverAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("pgcluster: user %s: %w", name, err)
		}
		return &account{uid, gid}, nil
	}
	return nil, errors.New("pgcluster: PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
}

// capDACReadSearch lets a process pass through directories that are closed to
// it: the cluster may lie below somebody's home. capabilities(7).
const capDACReadSearch = 2

func (a *account) apply(attr *syscall.SysProcAttr) {
	if a == nil {
		return
	}
	attr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	attr.AmbientCaps = []uintptr{capDACReadSearch}
}

func (a *account) owns(uid int) bool {
	return uid == os.Geteuid() || a != nil && uid == a.uid
}

// own gives files to the server's account, with all that is in them but the
// passwords, which are ours.
func (a *account) own(paths ...string) error {
	if a == nil {
		return nil
	}
	for _, path := range paths {
		err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if d.Type().IsRegular() && filepath.Ext(p) == ".password" && filepath.Base(p) != "initdb.password" {
				return nil
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) == a.uid {
				if d.IsDir() && p != path {
					return filepath.SkipDir // it was given before, whole
				}
				return nil
			}
			return os.Lchown(p, a.uid, a.gid)
		})
		if err != nil {
			return fmt.Errorf("pgcluster: give %s to the server: %w", path, err)
		}
	}
	return nil
}
