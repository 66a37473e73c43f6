/* Runs the network on a few inputs and prints each output's bits, then how much of the stack was used. */

#include <stdint.h>
#include <string.h>

#include "inputs.h"
#include "net.h"

extern uint32_t stack_begin[], stack_end[];
void put(const char *text);

static float scratch[NET_SCRATCH], output[NET_OUTPUT];

static void put_number(uint32_t number)
{
    char text[] = "00000000\n";
    for (int i = 0; i < 8; i++)
        text[i] = "0123456789abcdef"[number >> (28 - 4 * i) & 15];
    put(text);
}

int main(void)
{
    uint32_t *untouched = stack_begin, here;
    for (uint32_t *p = stack_begin; (uintptr_t)p < (uintptr_t)&here - 256; p++)
        *p = 0xDEADBEEF;
    for (int i = 0; i < INPUTS; i++) {
        net_run(inputs[i], output, scratch);
        for (int j = 0; j < NET_OUTPUT; j++) {
            uint32_t bits;
            memcpy(&bits, &output[j], sizeof bits);
            put_number(bits);
        }
    }
    while (*untouched == 0xDEADBEEF)
        untouched++;
    put_number((uint32_t)(stack_end - untouched) * 4);
    return 0;
}
