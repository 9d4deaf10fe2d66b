// A board with a serial line.
module lichen_board (input clk, input locked, input rx, output tx);
  top board (.OSCILLATOR(clk), .uart_0__rx__io(rx), .uart_0__tx__io(tx));
endmodule
