package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/element/elementtest"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/kibana/kibanatest"
	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/endsession/endsession/server"
	"github.com/endsession/endsession/server/config"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

func newDemo() *cobra.Command {
	var keep bool
	var systems, listen string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Start emulated systems and the gateway, end people's sessions, and show who is left",
		Long: `demo starts emulators of BIG-IQ, Kibana and Element over TLS with a few dozen people signed in, and a
gateway in front of them, all on loopback. It ends one person's sessions through gRPC, another's through REST,
everybody's who signed in through one provider, and those of a group, and shows after each step who is still signed in.

It exits with status 0 only if exactly the right sessions died.

With --systems it starts the emulated systems alone, for a gateway of your own to be tried with: their certificates and
secrets are in the directory, and what to write into the configuration is printed.`,
		Example: `  endsession demo
  endsession demo --keep
  endsession demo --systems lab`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if systems != "" {
				return demoSystems(cmd.Context(), cmd.OutOrStdout(), newWorld(), systems, listen)
			}
			return demo(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), newWorld(), demoSteps, keep)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "stay up afterwards, with everybody signed in again, to be tried with curl")
	cmd.Flags().StringVar(&systems, "systems", "", "start the emulated systems alone, and put what a gateway needs to know into this `directory`")
	cmd.Flags().StringVar(&listen, "listen", demoListen, "the `address` of the first system; the others have the next ports")
	cmd.MarkFlagsMutuallyExclusive("systems", "keep")
	return cmd
}

// demo runs the story in a world. Everything it writes is in a temporary directory.
func demo(ctx context.Context, out, errOut io.Writer, world *world, steps []demoStep, keep bool) error {
	dir, err := os.MkdirTemp("", "endsession-demo-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()

	defer world.stop()
	if err := world.serve(dir); err != nil {
		return fmt.Errorf("start the emulators: %w", err)
	}
	gateway, err := startDemoGateway(ctx, world, dir, errOut)
	if err != nil {
		return fmt.Errorf("start the gateway: %w", err)
	}
	defer gateway.stop()

	fmt.Fprintf(out, "%d sessions of %d people at three systems; the gateway serves gRPC at %s and REST at http://%s\n",
		len(world.population), len(world.people()), gateway.grpc, gateway.http)
	failed := 0
	for _, step := range steps {
		ok, err := step.run(ctx, out, world, gateway)
		if err != nil {
			return fmt.Errorf("%s: %w", step.title, err)
		}
		if !ok {
			failed++
		}
	}
	if failed > 0 {
		fmt.Fprintf(out, "\nWRONG: in %d of %d steps other sessions died than should have\n", failed, len(steps))
		return &exitError{status: exitFailed}
	}
	fmt.Fprintf(out, "\nExactly the right sessions died, in all %d steps.\n", len(steps))
	if !keep {
		return nil
	}
	world.signEverybodyIn()
	fmt.Fprintf(out, keepText, gateway.http, gateway.grpc)
	<-ctx.Done()
	return nil
}

// demoListen is where the first of the emulated systems is, if they are alone.
const demoListen = "127.0.0.1:9441"

// demoSystems serves the emulated systems until the context ends. What a gateway needs to know is in dir.
func demoSystems(ctx context.Context, out io.Writer, w *world, dir, listen string) error {
	host, port, err := net.SplitHostPort(listen)
	if err != nil || !loopback(host) {
		return usageError("--listen: want host:port of this machine alone, got %q", listen)
	}
	first, err := strconv.ParseUint(port, 10, 16)
	if err != nil || int(first)+len(w.targets) > 1<<16 {
		return usageError("--listen: want a port with %d more after it, got %q", len(w.targets)-1, port)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return &exitError{exitFailed, err}
	}
	defer w.stop()
	if err := w.serveAt(dir, func(i int) string { return net.JoinHostPort(host, strconv.Itoa(int(first)+i)) }); err != nil {
		return &exitError{exitFailed, fmt.Errorf("start the emulators: %w", err)}
	}
	for name, content := range demoFiles() {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return &exitError{exitFailed, err}
		}
	}
	fmt.Fprintf(out, "%d sessions of %d people at three systems, until Ctrl-C:\n\n", len(w.population), len(w.people()))
	tw := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, "SYSTEM\tURL\tTRUST (ca_file)\tACCOUNT")
	for i, account := range []string{
		"svc-endsession, with the password in " + filepath.Join(dir, "bigiq.password"),
		"the API key in " + filepath.Join(dir, "kibana.key"),
		"admin, with the password in " + filepath.Join(dir, "element.password"),
	} {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", []string{"BIG-IQ", "Kibana", "Element"}[i], w.targets[i].url, w.targets[i].caFile, account)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

const keepText = `
Everybody is signed in again. Try, until Ctrl-C:

  curl -s http://%[1]s/v1/sessions:invalidate -H 'Content-Type: application/json' \
    -d '{"selector": {"user": {"id": "alice"}}, "reason": "trying it out"}'
  curl -s http://%[1]s/v1/targets
  curl -s http://%[1]s/v1/invalidations
  grpcurl -plaintext -d '{"selector": {"user": {"id": "bob"}}}' %[2]s endsession.v1.SessionService/InvalidateSessions
  go run ./cmd/endsession invalidate --server %[2]s --user carol
`

// demoStep is one call and who must be gone afterwards.
type demoStep struct {
	title string
	// rest sends the call through REST instead of gRPC.
	rest bool
	call *endsessionv1.InvalidateSessionsRequest
	// dies says who must be gone, from what was noted when the session was made; nothing of the gateway is asked.
	dies func(signedIn) bool
}

var demoSteps = []demoStep{
	{
		title: "alice's account is compromised: end her sessions everywhere (gRPC)",
		call: &endsessionv1.InvalidateSessionsRequest{
			Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: "alice"}},
			Reason:   proto.String("account compromised"),
		},
		dies: func(s signedIn) bool { return s.person == "alice" },
	},
	{
		title: "bob leaves the company: the same call through REST",
		rest:  true,
		call: &endsessionv1.InvalidateSessionsRequest{
			Selector: &endsessionv1.Selector{User: &endsessionv1.User{Id: "bob"}},
			Reason:   proto.String("off-boarding"),
		},
		dies: func(s signedIn) bool { return s.person == "bob" },
	},
	{
		title: "the identity provider okta was breached: end what came in through it (gRPC)",
		call: &endsessionv1.InvalidateSessionsRequest{
			Selector:     &endsessionv1.Selector{Provider: &endsessionv1.Provider{Type: "saml", Name: proto.String("okta")}},
			ConfirmBroad: proto.Bool(true),
			Reason:       proto.String("provider breached"),
		},
		dies: func(s signedIn) bool { return s.okta },
	},
	{
		title: "the group vpn must sign in again, where the group means something (REST)",
		rest:  true,
		call: &endsessionv1.InvalidateSessionsRequest{
			Selector:         &endsessionv1.Selector{Group: proto.String("vpn")},
			ConfirmBroad:     proto.Bool(true),
			AllowUnsupported: proto.Bool(true),
			Reason:           proto.String("new access policy"),
		},
		dies: func(s signedIn) bool { return s.vpn },
	},
}

// run makes the call and compares who is left with who should be.
func (step demoStep) run(ctx context.Context, out io.Writer, w *world, g *demoGateway) (ok bool, err error) {
	before := w.present()
	fmt.Fprintf(out, "\n== %s\n", step.title)
	invalidate := g.invalidate
	if step.rest {
		invalidate = g.invalidateREST
	}
	inv, err := invalidate(ctx, step.call)
	if err != nil {
		return false, err
	}
	if err := printInvalidation(out, inv); err != nil {
		return false, err
	}
	after := w.present()
	if err := printChange(out, w, before, after); err != nil {
		return false, err
	}
	var wrong []string
	for _, s := range before {
		switch survived := slices.Contains(after, s); {
		case survived && step.dies(s):
			wrong = append(wrong, fmt.Sprintf("%s is still signed in at %s", s.person, s.target))
		case !survived && !step.dies(s):
			wrong = append(wrong, fmt.Sprintf("%s was signed out of %s", s.person, s.target))
		}
	}
	for _, line := range wrong {
		fmt.Fprintln(out, "WRONG: "+line)
	}
	if s := inv.GetState(); s != endsessionv1.InvalidationState_INVALIDATION_STATE_SUCCEEDED {
		fmt.Fprintf(out, "WRONG: the invalidation is %s\n", stateWord(s))
		return false, nil
	}
	return len(wrong) == 0, nil
}

// printChange shows for each person and target how many sessions there were and are.
func printChange(out io.Writer, w *world, before, after []signedIn) error {
	count := func(list []signedIn, person, target string) (n int) {
		for _, s := range list {
			if s.person == person && s.target == target {
				n++
			}
		}
		return n
	}
	tw := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprint(tw, "WHO")
	for _, t := range w.targets {
		fmt.Fprintf(tw, "\t%s", t.name)
	}
	fmt.Fprintln(tw)
	for _, person := range w.people() {
		fmt.Fprint(tw, person)
		for _, t := range w.targets {
			switch b, a := count(before, person, t.name), count(after, person, t.name); {
			case b != a:
				fmt.Fprintf(tw, "\t%d -> %d", b, a)
			case b == 0:
				fmt.Fprint(tw, "\t-")
			default:
				fmt.Fprintf(tw, "\t%d", b)
			}
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}

// emulated is an emulated system.
type emulated interface {
	SignIn(adapters.Session) adapters.Session
	Sessions() []adapters.Session
	Handler() http.Handler
}

// world is the emulated systems and who is signed in to them.
type world struct {
	targets    []demoTarget
	population []signedIn
	closers    []func()
}

type demoTarget struct {
	name   string
	system emulated
	// url and caFile are set once it serves.
	url, caFile string
}

// signedIn is one session, with what was decided when it was made: whose it is, and whether it came in through the
// identity provider okta or belongs to the group vpn.
type signedIn struct {
	target, id, person string
	okta, vpn          bool
}

const (
	demoBIGIQPassword   = "demo-bigiq"
	demoKibanaKey       = "demo:kibana"
	demoElementPassword = "demo-element"
	// demoVPN and demoPortal are APM access groups: the VPN gateways, and a web portal behind okta.
	demoVPN    = "RemoteAccess"
	demoPortal = "Portal"
)

func newWorld() *world {
	w := &world{targets: []demoTarget{
		{name: "apm", system: bigiqtest.New(bigiqtest.Options{Username: "svc-endsession", Password: demoBIGIQPassword, Devices: []bigiqtest.Device{
			{MachineID: "98901455-6384-47cd-bc41-00a39dfe338f", Hostname: "vpn1.corp.example", Address: "192.0.2.11", Cluster: "VPNCluster", AccessGroup: demoVPN},
			{MachineID: "217270dc-83bc-469d-9b84-36d7ebf2f6be", Hostname: "vpn2.corp.example", Address: "192.0.2.12", Cluster: "VPNCluster", AccessGroup: demoVPN, Passive: true},
			{MachineID: "901695c8-f405-489f-9996-54f7b21da642", Hostname: "portal.corp.example", Address: "192.0.2.21", AccessGroup: demoPortal},
		}})},
		{name: "kibana-prod", system: kibanatest.New(kibanatest.Options{
			Accounts:  []kibanatest.Account{{APIKey: demoKibanaKey, Superuser: true}},
			Providers: []kibanatest.Provider{{Type: "basic", Name: "basic"}, {Type: "saml", Name: "saml1"}},
		})},
		{name: "storage", system: elementtest.New(elementtest.Options{Username: "admin", Password: demoElementPassword})},
	}}
	w.signEverybodyIn()
	return w
}

// demoPeople are in the directory, some of them in the group vpn; everybody's e-mail is id@corp.example.
var demoPeople = []struct {
	id  string
	vpn bool
}{{"alice", true}, {"bob", false}, {"carol", true}, {"dave", true}, {"erin", true}, {"frank", false}, {"grace", false}, {"heidi", true}}

// signEverybodyIn gives everybody sessions, and signs in some whose names are nearly the same as others'.
func (w *world) signEverybodyIn() {
	w.population = nil
	for i, p := range demoPeople {
		email := p.id + "@corp.example"
		w.apm(p.id, p.id, demoVPN)
		if i%2 == 0 {
			w.apm(p.id, p.id, demoPortal)
		}
		w.kibana(p.id, email, "saml1", p.vpn)
		if i%3 == 0 {
			w.kibana(p.id, email, "basic", p.vpn)
		}
		switch i % 3 {
		case 0:
			w.element(p.id, "Ldap", "uid="+p.id+",ou=people,dc=corp,dc=example")
		case 1:
			w.element(p.id, "Idp", email)
		case 2:
			w.element(p.id, "Cluster", p.id)
		}
	}
	w.apm("Alice (another one)", "Alice", demoPortal)
	w.apm("alice2", "alice2", demoPortal)
	w.kibana("alice@corp.example.org", "alice@corp.example.org", "basic", false)
	w.kibana("bob (native account)", "bob", "basic", false)
	w.element("alicia", "Ldap", "uid=alicia,ou=people,dc=corp,dc=example")
	w.element("admin", "Cluster", "admin")
}

func (w *world) apm(person, name, accessGroup string) {
	s := w.targets[0].system.SignIn(adapters.Session{Username: name, Provider: adapters.Provider{Type: "access_group", Name: accessGroup}})
	w.population = append(w.population, signedIn{"apm", s.ID, person, accessGroup == demoPortal, accessGroup == demoVPN})
}

func (w *world) kibana(person, name, provider string, vpn bool) {
	typ := map[string]string{"saml1": "saml", "basic": "basic"}[provider]
	s := w.targets[1].system.SignIn(adapters.Session{Username: name, Provider: adapters.Provider{Type: typ, Name: provider},
		CreateTime: time.Now().Add(-time.Hour)})
	w.population = append(w.population, signedIn{"kibana-prod", s.ID, person, provider == "saml1", vpn})
}

func (w *world) element(person, method, name string) {
	s := w.targets[2].system.SignIn(adapters.Session{Username: name, Provider: adapters.Provider{Type: method},
		Groups: []adapters.Group{{Kind: "access_group", Name: "administrator"}}})
	w.population = append(w.population, signedIn{"storage", s.ID, person, method == "Idp", false})
}

// people are all who ever were signed in, in order of appearance.
func (w *world) people() []string {
	var people []string
	for _, s := range w.population {
		if !slices.Contains(people, s.person) {
			people = append(people, s.person)
		}
	}
	return people
}

// present returns who is signed in now, by asking the systems themselves.
func (w *world) present() []signedIn {
	var list []signedIn
	for _, s := range w.population {
		for _, t := range w.targets {
			if t.name == s.target && slices.ContainsFunc(t.system.Sessions(), func(x adapters.Session) bool { return x.ID == s.id }) {
				list = append(list, s)
			}
		}
	}
	return list
}

// serve puts the systems behind TLS listeners on free ports, each with an authority of its own.
func (w *world) serve(dir string) error {
	return w.serveAt(dir, func(int) string { return "127.0.0.1:0" })
}

func (w *world) serveAt(dir string, address func(i int) string) error {
	for i := range w.targets {
		t := &w.targets[i]
		url, ca, stop, err := emulator.ServeTLSAt(address(i), t.system.Handler())
		if err != nil {
			return err
		}
		w.closers = append(w.closers, stop)
		t.url, t.caFile = url, filepath.Join(dir, t.name+".pem")
		if err := os.WriteFile(t.caFile, ca, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) stop() {
	for _, stop := range w.closers {
		stop()
	}
}

// demoConfig is a configuration like one an operator writes.
const demoConfig = `listen: { grpc: "127.0.0.1:0", http: "127.0.0.1:0", admin: "127.0.0.1:0" }
store: { sqlite: { path: journal.db } }
directory: { file: { path: people.yaml } }
targets:
  - name: apm
    bigiq:
      url: %[1]s
      username: svc-endsession
      password: ${file:bigiq.password}
      ca_file: apm.pem
      scope: { discover: true }
    usernames: ['user.id']
    groups: { vpn: { access_groups: [RemoteAccess] } }
    providers: { saml/okta: { access_groups: [Portal] } }
  - name: kibana-prod
    kibana:
      url: %[2]s
      api_key: ${file:kibana.key}
      ca_file: kibana-prod.pem
    usernames: ['user.email']
    groups: { vpn: { directory: vpn } }
    providers: { saml/okta: [ { type: saml, name: saml1 } ] }
  - name: storage
    element:
      url: %[3]s
      username: admin
      password: ${file:element.password}
      ca_file: storage.pem
    usernames:
      - { provider: local, name: 'user.id' }
      - { provider: ldap, name: '"uid=" + ldapDN(user.id) + ",ou=people,dc=corp,dc=example"' }
      - { provider: saml, name: 'user.email' }
    providers: { saml/okta: [ { type: Idp } ] }
`

// demoGateway is a running gateway and clients of it.
type demoGateway struct {
	demoClients
	stop func()
}

// demoDirectory is the directory of people, as a file.
func demoDirectory() string {
	people := "users:\n"
	group := "groups:\n  vpn: ["
	for _, p := range demoPeople {
		people += fmt.Sprintf("  - { id: %s, email: %s@corp.example }\n", p.id, p.id)
		if p.vpn {
			group += p.id + ", "
		}
	}
	return people + group + "]\n"
}

// demoFiles are what a gateway's configuration names, beside the authorities.
func demoFiles() map[string]string {
	return map[string]string{
		"people.yaml":      demoDirectory(),
		"bigiq.password":   demoBIGIQPassword,
		"kibana.key":       demoKibanaKey,
		"element.password": demoElementPassword,
	}
}

func startDemoGateway(ctx context.Context, w *world, dir string, errOut io.Writer) (*demoGateway, error) {
	files := demoFiles()
	files["endsession.yaml"] = fmt.Sprintf(demoConfig, w.targets[0].url, w.targets[1].url, w.targets[2].url)
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	conf, err := config.Load(filepath.Join(dir, "endsession.yaml"), registry())
	if err != nil {
		return nil, err
	}
	logger := slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: slog.LevelError}))
	srv, err := server.Open(ctx, server.Options{Config: conf, Logger: logger})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx, context.Background()) }()
	g := &demoGateway{stop: func() {
		cancel()
		if err := <-ended; err != nil {
			logger.Error("gateway ended", "error", err)
		}
	}}
	g.demoClients, err = newDemoClients(srv.GRPCAddr().String(), srv.HTTPAddr().String())
	if err != nil {
		g.stop()
		return nil, err
	}
	return g, nil
}
