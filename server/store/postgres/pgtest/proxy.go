package pgtest

import (
	"net"
	"sync"
	"testing"
)

// Proxy stands between a store and a server and breaks what passes. A hook sees each piece of a conversation before it is
// passed on.
type Proxy struct {
	to       string
	listener net.Listener

	mu    sync.Mutex
	front func(piece []byte) Verdict
	back  func(piece []byte) Verdict
	conns map[net.Conn]net.Conn // client's → server's
}

// Verdict is what becomes of a piece.
type Verdict int

// The verdicts.
const (
	Pass Verdict = iota
	// Cut breaks the connection before the piece.
	Cut
	// PassAndCut passes the piece on, and breaks the connection when the answer to it has come, which nobody hears.
	PassAndCut
)

// NewProxy starts a proxy in front of a server.
func NewProxy(t testing.TB, to string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{to: to, listener: l, conns: map[net.Conn]net.Conn{}}
	go p.accept()
	t.Cleanup(func() {
		_ = l.Close()
		p.Break()
	})
	return p
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Hook sets what decides about pieces from the client (front) and from the server (back); nil passes all.
func (p *Proxy) Hook(front, back func(piece []byte) Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.front, p.back = front, back
}

// Break breaks every connection that there is now.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for client, server := range p.conns {
		_ = client.Close()
		_ = server.Close()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.serve(client)
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer server.Close()
	p.mu.Lock()
	p.conns[client] = server
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.conns, client)
		p.mu.Unlock()
	}()
	var wg sync.WaitGroup
	var doomed sync.Once
	dead := make(chan struct{}) // the answer that comes next is the last
	wg.Go(func() {
		defer server.Close()
		defer client.Close()
		p.pump(client, server, func(piece []byte) Verdict {
			v := p.judge(true, piece)
			if v == PassAndCut {
				doomed.Do(func() { close(dead) })
				return Pass
			}
			return v
		})
	})
	wg.Go(func() {
		defer server.Close()
		defer client.Close()
		p.pump(server, client, func(piece []byte) Verdict {
			select {
			case <-dead:
				return Cut
			default:
				return p.judge(false, piece)
			}
		})
	})
	wg.Wait()
}

func (p *Proxy) judge(front bool, piece []byte) Verdict {
	p.mu.Lock()
	f := p.back
	if front {
		f = p.front
	}
	p.mu.Unlock()
	if f == nil {
		return Pass
	}
	return f(piece)
}

func (p *Proxy) pump(from, to net.Conn, judge func([]byte) Verdict) {
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if judge(buf[:n]) == Cut {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
