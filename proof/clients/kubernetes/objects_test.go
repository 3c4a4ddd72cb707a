package kubernetes

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3/kubernetes"

	"k8s.io/apimachinery/pkg/api/apitesting"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/etcd3/testserver"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	"k8s.io/utils/clock"
)

// TestObjects drives one store through the life of BELAY_CLIENTS_OBJECTS (2000) objects. Everything
// that does not depend on time is written, a line each, to the file BELAY_CLIENTS_TRANSCRIPT:
// resource versions, continue tokens, counts, events, texts of errors. Two servers are alike if
// their files are equal. The log says how long each step took. The servers wait for their disks
// only with BELAY_CLIENTS_FSYNC.
func TestObjects(t *testing.T) {
	if os.Getenv("BELAY_CLIENTS_SERVER") == "" {
		t.Skip("BELAY_CLIENTS_SERVER does not name a server to start")
	}
	count := 2000
	if s := os.Getenv("BELAY_CLIENTS_OBJECTS"); s != "" {
		var err error
		if count, err = strconv.Atoi(s); err != nil || count < 100 {
			t.Fatalf("BELAY_CLIENTS_OBJECTS is %q; 100 or more is wanted", s)
		}
	}
	r := newRun(t, count)
	for _, step := range []struct {
		name string
		fn   func()
	}{
		{"create", r.create}, {"pages", r.pages}, {"versions", r.versions},
		{"update", r.update}, {"conflicts", r.conflicts}, {"delete", r.delete},
		{"watch", r.watch}, {"progress", r.progress}, {"cache", r.cache},
		{"contention", r.contention}, {"compact", r.compact}, {"empty", r.empty}, {"compactor", r.compactLoop},
	} {
		begin := time.Now()
		r.notef("== %s", step.name)
		r.ops.Store(0)
		step.fn()
		t.Logf("step %s: %d operations, %d ms", step.name, r.ops.Load(), time.Since(begin).Milliseconds())
	}
	if file := os.Getenv("BELAY_CLIENTS_TRANSCRIPT"); file != "" {
		if err := os.WriteFile(file, []byte(r.notes.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// run is one pass over one server.
type run struct {
	t         *testing.T
	ctx       context.Context
	count     int
	client    *kubernetes.Client
	store     storage.Interface
	compactor interface {
		etcd3.Compactor
		Stop()
	}
	codec runtime.Codec

	ops    atomic.Int64 // objects written, pages read and events seen in a step
	notes  strings.Builder
	made   string // resource version after the last create
	middle string // of an object in the middle of the creates
}

// prefix of all keys, and of the pods among them.
const (
	prefix         = "/registry"
	resourcePrefix = "/pods/"
)

func newRun(t *testing.T, count int) *run {
	ctx, cancel := context.WithTimeout(context.Background(), 9*time.Minute)
	t.Cleanup(cancel)
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	for _, add := range []func(*runtime.Scheme) error{example.AddToScheme, examplev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	r := &run{t: t, ctx: ctx, count: count}
	r.codec = apitesting.TestCodec(serializer.NewCodecFactory(scheme), examplev1.SchemeGroupVersion)
	cfg := testserver.NewTestConfig(t)
	cfg.WatchProgressNotifyInterval = time.Second
	cfg.UnsafeNoFsync = os.Getenv("BELAY_CLIENTS_FSYNC") == ""
	r.client = testserver.RunEtcd(t, cfg)
	r.compactor = etcd3.NewCompactor(r.client.Client, 0, clock.RealClock{}, nil)
	t.Cleanup(r.compactor.Stop)
	versioner := storage.APIObjectVersioner{}
	store, err := etcd3.New(r.client, r.compactor, r.codec, newPod, newPodList, prefix, resourcePrefix,
		schema.GroupResource{Resource: "pods"}, identity.NewEncryptCheckTransformer(),
		etcd3.NewDefaultLeaseManagerConfig(), etcd3.NewDefaultDecoder(r.codec, versioner), versioner)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	r.store = store
	return r
}

func newPod() runtime.Object     { return &example.Pod{} }
func newPodList() runtime.Object { return &example.PodList{} }

func (r *run) notef(format string, args ...any) { fmt.Fprintf(&r.notes, format+"\n", args...) }

func (r *run) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func podName(i int) (namespace, name string) {
	return fmt.Sprintf("ns-%d", i%7), fmt.Sprintf("pod-%05d", i)
}

func podKey(i int) string {
	namespace, name := podName(i)
	return path.Join(resourcePrefix, namespace, name)
}

func (r *run) create() {
	for i := range r.count {
		namespace, name := podName(i)
		pod := &example.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(fmt.Sprintf("uid-%d", i)),
				Labels: map[string]string{"parity": strconv.Itoa(i % 2)}},
			Spec: example.PodSpec{NodeName: fmt.Sprintf("node-%d", i%13), Hostname: strings.Repeat("h", i%200)},
		}
		var ttl uint64
		if i%50 == 0 {
			ttl = 3600 // as events have
		}
		out := &example.Pod{}
		r.must(r.store.Create(r.ctx, podKey(i), pod, out, ttl))
		r.ops.Add(1)
		r.notef("created %s at %s", name, out.ResourceVersion)
		if i == r.count/2 {
			r.middle = out.ResourceVersion
		}
		r.made = out.ResourceVersion
	}
	err := r.store.Create(r.ctx, podKey(0), &example.Pod{ObjectMeta: metav1.ObjectMeta{Name: "twice"}}, &example.Pod{}, 0)
	r.notef("created twice: %v", err)
	if !storage.IsExist(err) {
		r.t.Errorf("a second create of a key: %v", err)
	}
}

// list notes a list's outcome and returns its items.
func (r *run) list(key string, opts storage.ListOptions) *example.PodList {
	out := &example.PodList{}
	opts.Recursive = true
	err := r.store.GetList(r.ctx, key, opts, out)
	r.ops.Add(1)
	remaining := "-"
	if out.RemainingItemCount != nil {
		remaining = strconv.FormatInt(*out.RemainingItemCount, 10)
	}
	r.notef("list %s limit %d match %q version %q: %d items, version %s, remaining %s, continue %q, error %v",
		key, opts.Predicate.Limit, opts.ResourceVersionMatch, opts.ResourceVersion, len(out.Items), out.ResourceVersion, remaining, out.Continue, err)
	for _, pod := range out.Items {
		r.notef("  %s %s", pod.Name, pod.ResourceVersion)
	}
	return out
}

func paged(limit int64, continued string) storage.SelectionPredicate {
	return storage.SelectionPredicate{Label: labels.Everything(), Field: fields.Everything(), GetAttrs: podAttrs, Limit: limit, Continue: continued}
}

func podAttrs(obj runtime.Object) (labels.Set, fields.Set, error) {
	pod, ok := obj.(*example.Pod)
	if !ok {
		return nil, nil, fmt.Errorf("a %T is not a pod", obj)
	}
	return pod.Labels, fields.Set{"metadata.name": pod.Name, "metadata.namespace": pod.Namespace, "spec.nodeName": pod.Spec.NodeName}, nil
}

// pages lists everything in pages, with a write between any two of them: all
// pages show the first one's state.
func (r *run) pages() {
	seen, continued := 0, ""
	for {
		list := r.list(resourcePrefix, storage.ListOptions{Predicate: paged(97, continued)})
		seen += len(list.Items)
		if continued = list.Continue; continued == "" {
			break
		}
		_, err := r.client.Put(r.ctx, "/registry/between-pages", "x")
		r.must(err)
	}
	if seen != r.count {
		r.t.Errorf("pages held %d objects of %d", seen, r.count)
	}
	odd := paged(10, "")
	odd.Label = labels.SelectorFromSet(labels.Set{"parity": "1"})
	r.list(resourcePrefix, storage.ListOptions{Predicate: odd})
	r.list(resourcePrefix+"ns-3/", storage.ListOptions{Predicate: storage.Everything})
}

// versions lists at resource versions past, present and to come.
func (r *run) versions() {
	for _, version := range []string{"", "0", "1", r.middle, r.made, "999999999"} {
		for _, match := range []metav1.ResourceVersionMatch{"", metav1.ResourceVersionMatchExact, metav1.ResourceVersionMatchNotOlderThan} {
			if match != "" && version == "" || match == metav1.ResourceVersionMatchExact && version == "0" {
				continue // refused before the storage is asked
			}
			r.list(resourcePrefix+"ns-1/", storage.ListOptions{ResourceVersion: version, ResourceVersionMatch: match, Predicate: paged(5, "")})
		}
	}
	for _, version := range []string{"", "0", r.middle, "999999999"} {
		out := &example.Pod{}
		err := r.store.Get(r.ctx, podKey(1), storage.GetOptions{ResourceVersion: version}, out)
		r.notef("get at %q: %s, error %v", version, out.ResourceVersion, err)
	}
	err := r.store.Get(r.ctx, podKey(r.count+1), storage.GetOptions{}, &example.Pod{})
	r.notef("get of nothing: %v", err)
	version, err := r.store.GetCurrentResourceVersion(r.ctx)
	r.notef("current version %d, error %v", version, err)
	stats, err := r.store.Stats(r.ctx)
	r.notef("stats %+v, error %v", stats, err)
}

func (r *run) update() {
	for i := 0; i < r.count; i += 3 {
		out := &example.Pod{}
		err := r.store.GuaranteedUpdate(r.ctx, podKey(i), out, false, nil, storage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) {
			pod := obj.(*example.Pod)
			pod.Annotations = map[string]string{"updated": strconv.Itoa(i)}
			return pod, nil
		}), nil)
		r.must(err)
		r.ops.Add(1)
		r.notef("updated %s to %s", out.Name, out.ResourceVersion)
	}
}

// conflicts has updates and deletes refused: by preconditions, and after a
// write that came in between.
func (r *run) conflicts() {
	uid, version := types.UID("another"), "1"
	err := r.store.GuaranteedUpdate(r.ctx, podKey(1), &example.Pod{}, false, &storage.Preconditions{UID: &uid},
		storage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) { return obj, nil }), nil)
	r.notef("update with another uid: %v", err)
	err = r.store.Delete(r.ctx, podKey(1), &example.Pod{}, &storage.Preconditions{ResourceVersion: &version},
		storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{})
	r.notef("delete of another version: %v", err)
	stale := &example.Pod{}
	r.must(r.store.Get(r.ctx, podKey(4), storage.GetOptions{}, stale))
	tries := 0
	out := &example.Pod{}
	err = r.store.GuaranteedUpdate(r.ctx, podKey(4), out, false, nil, storage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) {
		if tries++; tries == 1 {
			r.must(r.store.GuaranteedUpdate(r.ctx, podKey(4), &example.Pod{}, false, nil, storage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) {
				obj.(*example.Pod).Annotations = map[string]string{"first": "yes"}
				return obj, nil
			}), nil))
		}
		obj.(*example.Pod).Labels = map[string]string{"second": "yes"}
		return obj, nil
	}), stale)
	r.notef("update after another's: %d tries, %v %v at %s, error %v", tries, out.Annotations, out.Labels, out.ResourceVersion, err)
}

func (r *run) delete() {
	for i := 0; i < r.count; i += 5 {
		r.remove(i)
	}
	err := r.store.Delete(r.ctx, podKey(0), &example.Pod{}, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{})
	r.notef("deleted twice: %v", err)
	r.list(resourcePrefix+"ns-2/", storage.ListOptions{Predicate: storage.Everything})
}

func (r *run) remove(i int) {
	out := &example.Pod{}
	r.must(r.store.Delete(r.ctx, podKey(i), out, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{}))
	r.ops.Add(1)
	r.notef("deleted %s at %s", out.Name, out.ResourceVersion)
}

// empty deletes what delete has left.
func (r *run) empty() {
	for i := range r.count {
		if i%5 != 0 {
			r.remove(i)
		}
	}
	if left := r.list(resourcePrefix, storage.ListOptions{Predicate: storage.Everything}); len(left.Items) > 0 {
		r.t.Errorf("%d objects are left of none", len(left.Items))
	}
}

// compactLoop lets the API server's own compactor run, beside a second one as a
// second API server has, until they have taken away what is older than a
// write. It is the last step: from here on revisions depend on time.
func (r *run) compactLoop() {
	first := etcd3.NewCompactor(r.client.Client, 100*time.Millisecond, clock.RealClock{}, nil)
	defer first.Stop()
	second := etcd3.NewCompactor(r.client.Client, 130*time.Millisecond, clock.RealClock{}, nil)
	defer second.Stop()
	_, err := r.client.Put(r.ctx, "/registry/elsewhere", "the last")
	r.must(err)
	at, err := r.store.GetCurrentResourceVersion(r.ctx)
	r.must(err)
	for deadline := time.Now().Add(time.Minute); ; {
		if min(first.CompactRevision(), second.CompactRevision(), r.compactor.CompactRevision()) >= int64(at) {
			break
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("compacted up to %d and %d, of which a watch knows %d; want %d", first.CompactRevision(), second.CompactRevision(), r.compactor.CompactRevision(), at)
		}
		time.Sleep(20 * time.Millisecond)
	}
	err = r.store.GetList(r.ctx, resourcePrefix, storage.ListOptions{ResourceVersion: r.made, ResourceVersionMatch: metav1.ResourceVersionMatchExact,
		Predicate: storage.Everything, Recursive: true}, &example.PodList{})
	r.notef("list of what the compactor took away: %v", err)
	if !apierrors.IsResourceExpired(err) {
		r.t.Errorf("a list of what the compactor took away: %v", err)
	}
}

// watch reads the past from a version in the middle of the creates: every
// event since then, in order.
func (r *run) watch() {
	w, err := r.store.Watch(r.ctx, resourcePrefix, storage.ListOptions{ResourceVersion: r.middle, Predicate: storage.Everything, Recursive: true})
	r.must(err)
	defer w.Stop()
	last, err := r.store.GetCurrentResourceVersion(r.ctx)
	r.must(err)
	for seen := ""; seen != strconv.FormatUint(last, 10); {
		pod, kind := r.next(w)
		r.notef("event %s %s %s", kind, pod.Name, pod.ResourceVersion)
		seen = pod.ResourceVersion
	}
	// Only what a selector takes; an object that leaves it is a deletion.
	odd := storage.SelectionPredicate{Label: labels.SelectorFromSet(labels.Set{"parity": "0"}), Field: fields.Everything(), GetAttrs: podAttrs}
	w, err = r.store.Watch(r.ctx, podKey(4), storage.ListOptions{ResourceVersion: r.made, Predicate: odd})
	r.must(err)
	defer w.Stop()
	pod, kind := r.next(w)
	r.notef("event of one object: %s %s %s", kind, pod.Name, pod.ResourceVersion)
}

// next returns the next event that is not a bookmark.
func (r *run) next(w watch.Interface) (*example.Pod, watch.EventType) {
	r.t.Helper()
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				r.t.Fatal("the watch ended")
			}
			if e.Type == watch.Bookmark {
				continue
			}
			r.ops.Add(1)
			pod, ok := e.Object.(*example.Pod)
			if !ok {
				r.t.Fatalf("event %s %v", e.Type, e.Object)
			}
			return pod, e.Type
		case <-time.After(30 * time.Second):
			r.t.Fatal("no event within 30 s")
		}
	}
}

// progress waits for bookmarks on a quiet prefix: periodic ones, and requested ones.
func (r *run) progress() {
	for _, asked := range []bool{false, true} {
		_, err := r.client.Put(r.ctx, "/registry/elsewhere", "x")
		r.must(err)
		want, err := r.store.GetCurrentResourceVersion(r.ctx)
		r.must(err)
		w, err := r.store.Watch(r.ctx, resourcePrefix, storage.ListOptions{ResourceVersion: r.made, Predicate: storage.Everything, Recursive: true, ProgressNotify: true})
		r.must(err)
		deadline := time.After(30 * time.Second)
		for reached := false; !reached; {
			if asked {
				r.must(r.store.RequestWatchProgress(r.ctx))
			}
			select {
			case e, ok := <-w.ResultChan():
				if !ok {
					r.t.Fatal("the watch ended")
				}
				if e.Type == watch.Bookmark {
					version, err := storage.APIObjectVersioner{}.ObjectResourceVersion(e.Object)
					r.must(err)
					reached = version >= want
				}
			case <-time.After(50 * time.Millisecond): // ask again
			case <-deadline:
				r.t.Fatalf("no bookmark at version %d within 30 s (asked: %v)", want, asked)
			}
		}
		r.notef("bookmark at the current version, asked: %v", asked)
		w.Stop()
	}
}

// cache reads through the watch cache: consistent lists, which wait for the
// progress of its watch, and a watch that begins with all objects.
func (r *run) cache() {
	resource := schema.GroupResource{Resource: "pods"}
	c, err := cacher.NewCacherFromConfig(cacher.Config{
		Storage: r.store, Versioner: storage.APIObjectVersioner{}, GroupResource: resource,
		EventsHistoryWindow: cacher.DefaultEventFreshDuration, ResourcePrefix: resourcePrefix,
		KeyFunc:      func(obj runtime.Object) (string, error) { return storage.NamespaceKeyFunc(resourcePrefix, obj) },
		GetAttrsFunc: podAttrs, NewFunc: newPod, NewListFunc: newPodList, Codec: r.codec, Clock: clock.RealClock{},
	})
	r.must(err)
	defer c.Stop()
	r.must(c.Wait(r.ctx))
	delegator := cacher.NewCacheDelegator(c, r.store)
	defer delegator.Stop()
	direct := r.store
	r.store = delegator
	defer func() { r.store = direct }()
	for i := range 20 {
		// Each list must see the write before it, which the cache's own watch
		// does not: it is of another prefix.
		_, err := r.client.Put(r.ctx, "/registry/elsewhere", strconv.Itoa(i))
		r.must(err)
		out := &example.Pod{}
		r.must(r.store.GuaranteedUpdate(r.ctx, podKey(7), out, false, nil, storage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) {
			obj.(*example.Pod).Annotations = map[string]string{"turn": strconv.Itoa(i)}
			return obj, nil
		}), nil))
		list := &example.PodList{}
		r.ops.Add(2)
		r.must(r.store.GetList(r.ctx, resourcePrefix+"ns-0/", storage.ListOptions{Predicate: storage.Everything, Recursive: true}, list))
		at := slices.IndexFunc(list.Items, func(p example.Pod) bool { return p.Name == out.Name })
		if at < 0 || list.Items[at].ResourceVersion != out.ResourceVersion {
			r.t.Errorf("a consistent list at %s does not show the write of %s", list.ResourceVersion, out.ResourceVersion)
		}
		r.notef("cached list: %d items", len(list.Items))
	}
	r.list(resourcePrefix+"ns-4/", storage.ListOptions{Predicate: paged(11, "")})
	yes := true
	predicate := storage.Everything
	predicate.AllowWatchBookmarks = true
	w, err := r.store.Watch(r.ctx, resourcePrefix, storage.ListOptions{
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, SendInitialEvents: &yes, Predicate: predicate, Recursive: true})
	r.must(err)
	defer w.Stop()
	initial := 0
	for deadline := time.After(30 * time.Second); ; {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				r.t.Fatal("the watch ended")
			}
			if e.Type == watch.Added {
				initial++
				continue
			}
			if e.Type != watch.Bookmark {
				r.t.Fatalf("event %s %v", e.Type, e.Object)
			}
			r.notef("initial events: %d, then a bookmark", initial)
			return
		case <-deadline:
			r.t.Fatalf("no bookmark after %d initial events", initial)
		}
	}
}

// contention counts with many writers on one object.
func (r *run) contention() {
	const writers, turns = 8, 25
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for n := range writers {
		wg.Go(func() {
			for range turns {
				err := r.store.GuaranteedUpdate(r.ctx, podKey(8), &example.Pod{}, false, nil, storage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) {
					pod := obj.(*example.Pod)
					was, _ := strconv.Atoi(pod.Annotations["count"])
					pod.Annotations = map[string]string{"count": strconv.Itoa(was + 1)}
					return pod, nil
				}), nil)
				if err != nil {
					errs[n] = err
					return
				}
				r.ops.Add(1)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		r.must(err)
	}
	out := &example.Pod{}
	r.must(r.store.Get(r.ctx, podKey(8), storage.GetOptions{}, out))
	r.notef("counted to %s at %s", out.Annotations["count"], out.ResourceVersion)
	if out.Annotations["count"] != strconv.Itoa(writers*turns) {
		r.t.Errorf("counted to %s, want %d", out.Annotations["count"], writers*turns)
	}
}

// compact takes the history away as the API server does, and wants lists,
// pages and watches of the past to be refused as expired, pages with a way on.
func (r *run) compact() {
	page := r.list(resourcePrefix, storage.ListOptions{Predicate: paged(50, "")})
	_, err := r.client.Put(r.ctx, "/registry/elsewhere", "x")
	r.must(err)
	at, err := r.store.GetCurrentResourceVersion(r.ctx)
	r.must(err)
	_, _, compacted, err := etcd3.Compact(r.ctx, r.client.Client, 0, int64(at))
	if err == nil && compacted != int64(at) {
		// The first call learns the version of the key that records compactions.
		_, _, compacted, err = etcd3.Compact(r.ctx, r.client.Client, 0, int64(at))
	}
	r.notef("compacted at %d: %d, error %v", at, compacted, err)
	r.list(resourcePrefix, storage.ListOptions{ResourceVersion: r.middle, ResourceVersionMatch: metav1.ResourceVersionMatchExact, Predicate: paged(50, "")})
	out := &example.PodList{}
	err = r.store.GetList(r.ctx, resourcePrefix, storage.ListOptions{Predicate: paged(50, page.Continue), Recursive: true}, out)
	status, ok := err.(apierrors.APIStatus)
	if !ok || !apierrors.IsResourceExpired(err) {
		r.t.Fatalf("a page after the compaction: %v", err)
	}
	r.notef("page after the compaction: %v, to go on %q", err, status.Status().ListMeta.Continue)
	r.list(resourcePrefix, storage.ListOptions{Predicate: paged(50, status.Status().ListMeta.Continue)})
	w, err := r.store.Watch(r.ctx, resourcePrefix, storage.ListOptions{ResourceVersion: r.middle, Predicate: storage.Everything, Recursive: true})
	r.must(err)
	defer w.Stop()
	select {
	case e := <-w.ResultChan():
		r.notef("watch after the compaction: %s %v", e.Type, e.Object)
		if e.Type != watch.Error {
			r.t.Errorf("a watch of compacted history sent %s %v", e.Type, e.Object)
		}
	case <-time.After(30 * time.Second):
		r.t.Error("a watch of compacted history said nothing for 30 s")
	}
	r.list(resourcePrefix+"ns-5/", storage.ListOptions{Predicate: storage.Everything})
}
