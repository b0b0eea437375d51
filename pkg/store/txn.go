package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	// ErrRefused marks a failed write that certainly had no effect: permission
	// denied, request too large or malformed, an unknown lease, too many
	// requests. Any other error of a write leaves its outcome unknown.
	ErrRefused = errors.New("store: refused, nothing was written")
	// ErrDenied marks what etcd's permissions don't allow this client, by its
	// user. A write that failed so is an [ErrRefused] too.
	ErrDenied = errors.New("store: denied by etcd's permissions")
	// ErrNoSpace says that etcd's space quota is exhausted. It is not an
	// ErrRefused: the write that crosses the quota is applied and then answered
	// with this error (quotaApplierV3.Txn in etcd/server/etcdserver/apply).
	ErrNoSpace = errors.New("store: etcd is out of space")
	// ErrLeaseLost says that the lease has expired or was revoked.
	ErrLeaseLost = errors.New("store: lease is gone")
)

// MaxOps is etcd's limit on the guards, and on the puts and deletes, of one [Client.Commit].
const MaxOps = 128

// Guard is a condition on one key.
type Guard struct {
	Key         string
	ModRevision int64 // 0: the key must not exist
}

// Put is one write. Lease 0 binds it to none, and takes it off one that it had.
type Put struct {
	Key   string
	Value []byte
	Lease int64
}

// Commit does all puts and deletes in one transaction if every guard holds.
// A guard that doesn't is committed=false and no error. Deleting what is missing
// is no error either. revision is the store's after the transaction, so the mod
// revision of everything written. An error that is not [ErrRefused] means that
// the outcome is unknown: it may have been committed, or be so later.
func (c *Client) Commit(ctx context.Context, guards []Guard, puts []Put, deletes []string) (committed bool, revision int64, err error) {
	if n := max(len(guards), len(puts)+len(deletes)); n > MaxOps {
		return false, 0, fmt.Errorf("%w: %d guards or operations, at most %d", ErrRefused, n, MaxOps)
	}
	etcd, err := c.conn(ctx)
	if err != nil {
		return false, 0, fmt.Errorf("%w: %w", ErrRefused, err) // not sent
	}
	ifs := make([]clientv3.Cmp, 0, len(guards))
	for _, g := range guards {
		ifs = append(ifs, clientv3.Compare(clientv3.ModRevision(g.Key), "=", g.ModRevision))
	}
	ops := make([]clientv3.Op, 0, len(puts)+len(deletes))
	for _, p := range puts {
		ops = append(ops, clientv3.OpPut(p.Key, string(p.Value), clientv3.WithLease(clientv3.LeaseID(p.Lease))))
	}
	for _, key := range deletes {
		ops = append(ops, clientv3.OpDelete(key))
	}
	r, err := etcd.Txn(ctx).If(ifs...).Then(ops...).Commit()
	c.troubles.written(c.log, puts, deletes, denied(err))
	if err != nil {
		return false, 0, c.classify("write "+written(puts, deletes), err)
	}
	return r.Succeeded, r.Header.Revision, nil
}

// written names the keys of a write, for errors.
func written(puts []Put, deletes []string) string {
	keys := slices.Clone(deletes)
	for _, p := range puts {
		keys = append(keys, p.Key)
	}
	if len(keys) > 3 {
		keys = append(keys[:3:3], fmt.Sprintf("... (%d keys)", len(keys)))
	}
	return strings.Join(keys, ", ")
}

// denied tells whether etcd knows the client and does not allow it, or does not
// know it and wants to.
func denied(err error) bool {
	etcdErr := rpctypes.Error(err)
	return errors.Is(etcdErr, rpctypes.ErrPermissionDenied) || errors.Is(etcdErr, rpctypes.ErrUserEmpty)
}

// deniedError is an [ErrDenied] in words.
type deniedError struct {
	what, who string
	err       error
}

func (e *deniedError) Error() string {
	return fmt.Sprintf("store: %s: etcd's permissions do not allow it to %s (%v)", e.what, e.who, e.err)
}

func (e *deniedError) Is(target error) bool { return target == ErrDenied || target == ErrRefused }

func (e *deniedError) Unwrap() error { return e.err }

// classify wraps an error of etcd so that callers need no type of the etcd client.
func (c *Client) classify(what string, err error) error {
	etcdErr := rpctypes.Error(err)
	switch {
	case denied(err):
		return &deniedError{what, c.cfg.who(), err}
	case errors.Is(etcdErr, rpctypes.ErrNoSpace):
		return fmt.Errorf("store: %s: %w: %w", what, ErrNoSpace, err)
	case errors.Is(etcdErr, rpctypes.ErrLeaseNotFound):
		return fmt.Errorf("store: %s: %w: %w: %w", what, ErrRefused, ErrLeaseLost, err)
	case refused(etcdErr):
		return fmt.Errorf("store: %s: %w: %w", what, ErrRefused, err)
	}
	return fmt.Errorf("store: %s: %w", what, err)
}

// refused knows the codes that etcd and gRPC use only before a request has
// been applied. Whatever is not listed counts as unknown.
func refused(err error) bool {
	code := status.Code(err)
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		code = e.Code()
	}
	switch code {
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument, codes.Unimplemented:
		return true
	case codes.ResourceExhausted: // too many requests, or a message above gRPC's limit
		return true
	}
	return false
}
