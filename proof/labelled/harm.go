package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/inject"
)

// harm makes one fault, waits until ctx ends, and undoes it. member is who has it, by number. It
// returns the members at fault.
func (l *life) harm(ctx context.Context, f planned, member int) (at []int, err error) {
	one, all := []int{member}, []int{0, 1, 2}
	severity := time.Duration(f.severity * float64(time.Second))
	m := l.c.Members[member]
	switch f.name {
	case "slow":
		return one, l.onDisks(ctx, one, fmt.Sprintf("set sync delay %v", severity))
	case "all-slow":
		return all, l.onDisks(ctx, all, fmt.Sprintf("set sync delay %v", severity))
	case "hang":
		return one, l.onDisks(ctx, one, "set sync,write,meta hang")
	case "disk-error":
		return one, l.onDisks(ctx, one, fmt.Sprintf("set sync,write fail %d", syscall.EIO))
	case "disk-full":
		return one, l.onDisks(ctx, one, fmt.Sprintf("set sync,write fail %d", syscall.ENOSPC))
	case "pause":
		if err := m.Signal(syscall.SIGSTOP); err != nil {
			return nil, err
		}
		<-ctx.Done()
		return one, m.Signal(syscall.SIGCONT)
	case "kill":
		if err := m.Kill(); err != nil {
			return nil, err
		}
		<-ctx.Done()
		return one, m.Start()
	case "stop":
		bounded, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := m.Stop(bounded); err != nil {
			return nil, err
		}
		<-ctx.Done()
		return one, m.Start()
	case "transfer":
		return []int{l.leader}, l.transfer(ctx)
	case "starve":
		if err := inject.Renice(m.PID(), 19); err != nil {
			return nil, err
		}
		err := inject.BurnCPU(ctx, 8, 10)
		return one, errors.Join(err, inject.Renice(m.PID(), 0))
	}
	whole, cut := inject.Link{}, inject.Link{Cut: true}
	switch f.name {
	case "cut":
		l.net.Set(one, all, cut)
		l.net.Set(all, one, cut)
	case "cut-out":
		l.net.Set(one, all, cut)
	case "cut-in":
		l.net.Set(all, one, cut)
	case "cut-link":
		other := []int{(member + 1 + f.follower) % 3}
		l.net.Set(one, other, cut)
		l.net.Set(other, one, cut)
		at = append(at, other...)
	case "flap":
		l.net.Flap(ctx, one, all, severity)
	case "delay":
		slow := inject.Link{Delay: severity, Jitter: severity / 5}
		l.net.Set(one, all, slow)
		l.net.Set(all, one, slow)
	case "loss":
		lossy := inject.Link{Delay: time.Millisecond, Loss: f.severity}
		l.net.Set(one, all, lossy)
		l.net.Set(all, one, lossy)
	default:
		return nil, fmt.Errorf("no fault is called %q", f.name)
	}
	<-ctx.Done()
	l.net.Set(all, all, whole)
	return append(one, at...), nil
}

// onDisks sends a command to some members' disks, and clears it when ctx ends.
func (l *life) onDisks(ctx context.Context, members []int, command string) (err error) {
	for _, i := range members {
		if _, err := l.disks[i].Tell("%s", command); err != nil {
			return err
		}
		defer func() {
			_, clearErr := l.disks[i].Tell("clear")
			err = errors.Join(err, clearErr)
		}()
	}
	<-ctx.Done()
	return nil
}

// transfer moves leadership to the next member.
func (l *life) transfer(ctx context.Context) error {
	cl, err := l.client(l.c.Members[l.leader].Endpoint())
	if err != nil {
		return err
	}
	defer cl.Close()
	call, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	st, err := cl.Status(call, l.c.Members[(l.leader+1)%3].Endpoint())
	if err != nil {
		return err
	}
	if _, err = clientv3.NewMaintenance(cl).MoveLeader(call, st.Header.MemberId); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
