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

	"golang.org/x/sys/unix"
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

// apply has a process run as the account. Where we may, we let it pass through
// directories that are closed to it: the cluster may lie below somebody's home
// (capabilities(7)). Root in a container mostly may not.
func (a *account) apply(attr *syscall.SysProcAttr) {
	if a == nil {
		return
	}
	attr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	if permitted(unix.CAP_DAC_READ_SEARCH) {
		attr.AmbientCaps = []uintptr{unix.CAP_DAC_READ_SEARCH}
	}
}

// permitted reports whether this process may pass a capability on.
func permitted(capability int) bool {
	var caps [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0])
	return err == nil && caps[capability/32].Permitted>>(capability%32)&1 == 1
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

// reach lets the account get to a directory of ours. Where it cannot be let through
// what is closed to it, its group may pass through the directory above, which is ours
// as well; those above that are somebody's.
func (a *account) reach(dir string) error {
	if a == nil || permitted(unix.CAP_DAC_READ_SEARCH) {
		return nil
	}
	above := filepath.Dir(dir)
	info, err := os.Stat(above)
	if err == nil && !a.passes(info) {
		err = errors.Join(os.Chown(above, -1, a.gid), os.Chmod(above, info.Mode().Perm()|0o010))
	}
	for err == nil && above != "/" {
		above = filepath.Dir(above)
		if info, err = os.Stat(above); err == nil && !a.passes(info) {
			return fmt.Errorf("pgcluster: we are root, so that PostgreSQL runs as the user %d, who may not enter %s: choose another directory, or start as another user", a.uid, above)
		}
	}
	if err != nil {
		return fmt.Errorf("pgcluster: let the server get to %s: %w", dir, err)
	}
	return nil
}

// passes reports whether the account may pass through a directory.
func (a *account) passes(dir fs.FileInfo) bool {
	bits := fs.FileMode(0o001)
	if stat, ok := dir.Sys().(*syscall.Stat_t); ok && int(stat.Uid) == a.uid {
		bits = 0o100
	} else if ok && int(stat.Gid) == a.gid {
		bits = 0o010
	}
	return dir.Mode().Perm()&bits != 0
}
